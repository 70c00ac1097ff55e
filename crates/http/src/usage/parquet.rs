//! Sums as Apache Parquet: names as strings, numbers as 64-bit integers, `cost_usd` as a double.

use super::{COLUMNS, numbers};
use parquet::{
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type},
    errors::Result,
    file::{
        properties::WriterProperties, writer::SerializedFileWriter,
        writer::SerializedRowGroupWriter,
    },
    schema::parser::parse_message_type,
};
use std::sync::Arc;
use tidegate_core::{UsageQuery, UsageRow};

/// The whole file.
pub(super) fn encode(query: &UsageQuery, rows: &[UsageRow]) -> Vec<u8> {
    let mut file = Vec::new();
    write(query, rows, &mut file).expect("columns of one length are written to memory");
    file
}

fn write(query: &UsageQuery, rows: &[UsageRow], file: &mut Vec<u8>) -> Result<()> {
    let schema = Arc::new(parse_message_type(&schema(query))?);
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties)?;
    let mut group = writer.next_row_group()?;
    for index in 0..query.group_by.len() {
        let names: Vec<ByteArray> = rows.iter().map(|row| row.of[index].as_str().into()).collect();
        column::<ByteArrayType>(&mut group, &names)?;
    }
    for index in 0..COLUMNS.len() - 1 {
        let numbers: Vec<i64> =
            rows.iter().map(|row| i64::try_from(numbers(row)[index]).unwrap_or(i64::MAX)).collect();
        column::<Int64Type>(&mut group, &numbers)?;
    }
    let costs: Vec<f64> = rows.iter().map(|row| row.cost.usd()).collect();
    column::<DoubleType>(&mut group, &costs)?;
    group.close()?;
    writer.close().map(drop)
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
) -> Result<()> {
    let mut column = group.next_column()?.expect("the schema has a column for each");
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

fn schema(query: &UsageQuery) -> String {
    let mut text = String::from("message usage {\n");
    for group in &query.group_by {
        text.push_str(&format!("required binary {} (STRING);\n", group.name()));
    }
    for name in &COLUMNS[..COLUMNS.len() - 1] {
        text.push_str(&format!("required int64 {name};\n"));
    }
    text.push_str(&format!("required double {};\n}}", COLUMNS[COLUMNS.len() - 1]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    #[test]
    fn what_is_written_is_read_back() {
        let (query, rows) = super::super::tests::table();
        let reader = SerializedFileReader::new(Bytes::from(encode(&query, &rows))).unwrap();
        let found: Vec<String> =
            reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect();
        let numbers = "calls: 2, failed: 1, input_tokens: 10, cached_input_tokens: 4, \
            cache_write_input_tokens: 2, output_tokens: 5, reasoning_tokens: 3, unpriced_attempts: 7, \
            cost_picodollars: 1500000000045, cost_usd: 1.500000000045}";
        assert_eq!(
            found,
            [
                format!("{{team: \"\", model: \"chat\", attempts: 1, {numbers}"),
                format!("{{team: \"Ops, \"night\"\", model: \"ä\", attempts: 3, {numbers}"),
            ]
        );
    }

    #[test]
    fn no_rows_are_a_file_too() {
        let (query, _) = super::super::tests::table();
        let reader = SerializedFileReader::new(Bytes::from(encode(&query, &[]))).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    }
}
