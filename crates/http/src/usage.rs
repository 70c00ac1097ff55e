//! What a ledger's sums look like outside: the question as it is written in a URL or on a command
//! line, and the answer as JSON, CSV or Parquet.
//!
//! All forms have the same columns in the same order: one per group, then [`COLUMNS`]. Columns may
//! be added at the end; none is renamed or taken away.

mod parquet;

use crate::shown;
use bytes::Bytes;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Serialize, Serializer, ser::SerializeMap as _, ser::SerializeSeq as _};
use std::fmt::Write as _;
use tidegate_core::{Error, Group, UsageQuery, UsageRow};

/// The numbers of each row.
pub const COLUMNS: [&str; 11] = [
    "attempts",
    "calls",
    "failed",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "unpriced_attempts",
    "cost_picodollars",
    "cost_usd",
];

/// Rows that are given unless more are asked for.
pub const DEFAULT_ROWS: u32 = 10_000;

/// A form of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One object with the rows in `data`.
    #[default]
    Json,
    /// RFC 4180, the columns' names first. Names that a spreadsheet would take for a formula have a
    /// `'` in front.
    Csv,
    /// Apache Parquet, one row group, not compressed.
    Parquet,
}

impl Format {
    /// Every form, for tables and tests.
    pub const ALL: [Self; 3] = [Self::Json, Self::Csv, Self::Parquet];

    /// The word for it, which is also the extension of its files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }

    /// The form of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// The rows in a form.
pub fn encode(format: Format, query: &UsageQuery, rows: &[UsageRow]) -> Bytes {
    match format {
        Format::Json => serde_json::to_vec(&Answer { query, rows })
            .expect("names and numbers can always be written")
            .into(),
        Format::Csv => csv(query, rows).into(),
        Format::Parquet => parquet::encode(query, rows).into(),
    }
}

/// Reads `team,model`.
///
/// # Errors
///
/// Names the word that is no group, and those that are.
pub fn read_groups(text: &str) -> Result<Vec<Group>, Error> {
    let mut groups = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let group = Group::ALL.into_iter().find(|group| group.name() == word).ok_or_else(|| {
            let all = Group::ALL.map(Group::name).join(", ");
            Error::invalid("group_by", format!("{} is no group: take of {all}", shown::name(word)))
        })?;
        if groups.contains(&group) {
            return Err(Error::invalid("group_by", format!("`{word}` is there twice")));
        }
        groups.push(group);
    }
    Ok(groups)
}

/// Reads a moment: a day (its beginning, UTC), a time of RFC 3339, or Unix seconds.
///
/// # Errors
///
/// Says how moments are written.
pub fn read_moment(param: &'static str, text: &str) -> Result<u64, Error> {
    let wrong = || {
        let message = format!(
            "`{param}` is no moment: write a day (UTC) like 2026-11-01, a time like \
             2026-11-01T08:00:00Z, or Unix seconds"
        );
        Error::invalid(param, message)
    };
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let day = text.parse::<Date>().ok().filter(|_| !text.contains(['T', 't', ' ']));
    let moment = match day {
        Some(day) => day.to_zoned(TimeZone::UTC).map_err(|_| wrong())?.timestamp(),
        None => text.parse::<Timestamp>().map_err(|_| wrong())?,
    };
    u64::try_from(moment.as_second()).map_err(|_| wrong())
}

/// The numbers of a row, in the order of [`COLUMNS`], the last one left out.
fn numbers(row: &UsageRow) -> [u64; COLUMNS.len() - 1] {
    let usage = row.usage;
    [
        row.attempts,
        row.calls,
        row.failed,
        usage.input,
        usage.cached_input,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        row.unpriced,
        row.cost.pico(),
    ]
}

struct Answer<'a> {
    query: &'a UsageQuery,
    rows: &'a [UsageRow],
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let moment = |second: Option<u64>| {
            let second = i64::try_from(second?).ok()?;
            Some(Timestamp::from_second(second).ok()?.to_string())
        };
        let mut object = to.serialize_map(None)?;
        object.serialize_entry("object", "usage")?;
        object.serialize_entry("from", &moment(self.query.from))?;
        object.serialize_entry("to", &moment(self.query.to))?;
        let groups: Vec<_> = self.query.group_by.iter().map(|group| group.name()).collect();
        object.serialize_entry("group_by", &groups)?;
        object.serialize_entry("data", &Rows(self))?;
        object.serialize_entry("truncated", &is_truncated(self.query, self.rows))?;
        object.end()
    }
}

/// Whether there may be more rows than were given.
pub fn is_truncated(query: &UsageQuery, rows: &[UsageRow]) -> bool {
    !query.group_by.is_empty() && rows.len() as u64 >= u64::from(query.limit)
}

struct Rows<'a>(&'a Answer<'a>);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.rows.len()))?;
        for row in self.0.rows {
            list.serialize_element(&Row { query: self.0.query, row })?;
        }
        list.end()
    }
}

struct Row<'a> {
    query: &'a UsageQuery,
    row: &'a UsageRow,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut object = to.serialize_map(None)?;
        for (group, of) in self.query.group_by.iter().zip(&self.row.of) {
            // A caller without a team has none, which is not one of no name.
            let of = Some(of).filter(|of| *group != Group::Team || !of.is_empty());
            object.serialize_entry(group.name(), &of)?;
        }
        for (name, number) in COLUMNS.iter().zip(numbers(self.row)) {
            object.serialize_entry(name, &number)?;
        }
        object.serialize_entry("cost_usd", &self.row.cost.usd())?;
        object.end()
    }
}

/// What makes a spreadsheet calculate: callers and teams are named by others than who opens it.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Costs are written with as many decimals as they have.
fn csv(query: &UsageQuery, rows: &[UsageRow]) -> String {
    let mut text = String::new();
    let groups = query.group_by.iter().map(|group| group.name());
    text.push_str(&groups.chain(COLUMNS).collect::<Vec<_>>().join(","));
    text.push_str("\r\n");
    for row in rows {
        for of in &row.of {
            let mark = if of.starts_with(FORMULA) { "'" } else { "" };
            if of.contains([',', '"', '\r', '\n']) {
                write!(text, "\"{mark}{}\",", of.replace('"', "\"\""))
            } else {
                write!(text, "{mark}{of},")
            }
            .expect("a string takes it");
        }
        for number in numbers(row) {
            write!(text, "{number},").expect("a string takes it");
        }
        text.push_str(row.cost.to_string().trim_start_matches('$'));
        text.push_str("\r\n");
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tidegate_core::{Money, Usage};

    pub(crate) fn table() -> (UsageQuery, Vec<UsageRow>) {
        let query = UsageQuery {
            from: Some(1_793_491_200),
            group_by: vec![Group::Team, Group::Model],
            limit: 10,
            ..UsageQuery::default()
        };
        let row = |team: &str, model: &str, attempts| UsageRow {
            of: vec![team.into(), model.into()],
            attempts,
            calls: 2,
            failed: 1,
            usage: Usage { input: 10, cached_input: 4, cache_write: 2, output: 5, reasoning: 3 },
            cost: Money::from_pico(1_500_000_000_045),
            unpriced: 7,
        };
        (query, vec![row("", "chat", 1), row("Ops, \"night\"", "ä", 3)])
    }

    fn encoded(format: Format) -> String {
        let (query, rows) = table();
        String::from_utf8(encode(format, &query, &rows).to_vec()).unwrap()
    }

    #[test]
    fn json_names_every_column() {
        assert_eq!(
            encoded(Format::Json),
            concat!(
                r#"{"object":"usage","from":"2026-11-01T00:00:00Z","to":null,"#,
                r#""group_by":["team","model"],"data":["#,
                r#"{"team":null,"model":"chat","attempts":1,"calls":2,"failed":1,"#,
                r#""input_tokens":10,"cached_input_tokens":4,"cache_write_input_tokens":2,"#,
                r#""output_tokens":5,"reasoning_tokens":3,"unpriced_attempts":7,"#,
                r#""cost_picodollars":1500000000045,"cost_usd":1.500000000045},"#,
                r#"{"team":"Ops, \"night\"","model":"ä","attempts":3,"calls":2,"failed":1,"#,
                r#""input_tokens":10,"cached_input_tokens":4,"cache_write_input_tokens":2,"#,
                r#""output_tokens":5,"reasoning_tokens":3,"unpriced_attempts":7,"#,
                r#""cost_picodollars":1500000000045,"cost_usd":1.500000000045}],"#,
                r#""truncated":false}"#,
            )
        );
    }

    #[test]
    fn csv_quotes_what_it_must() {
        assert_eq!(
            encoded(Format::Csv),
            "team,model,attempts,calls,failed,input_tokens,cached_input_tokens,\
             cache_write_input_tokens,output_tokens,reasoning_tokens,unpriced_attempts,cost_picodollars,cost_usd\r\n\
             ,chat,1,2,1,10,4,2,5,3,7,1500000000045,1.500000000045\r\n\
             \"Ops, \"\"night\"\"\",ä,3,2,1,10,4,2,5,3,7,1500000000045,1.500000000045\r\n"
        );
    }

    #[test]
    fn csv_holds_no_formula() {
        let query = UsageQuery { group_by: vec![Group::Team], ..UsageQuery::default() };
        for (name, written) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1,2", "\"'-1,2\""),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            ("a=1", "a=1"),
        ] {
            let row = UsageRow { of: vec![name.into()], ..UsageRow::default() };
            let text = csv(&query, &[row]);
            let line = text.split_once("\r\n").unwrap().1;
            assert!(line.starts_with(&format!("{written},0,")), "{line}");
        }
    }

    #[test]
    fn moments_are_read() {
        for (text, second) in [
            ("2026-11-01", Some(1_793_491_200)),
            ("2026-11-01T08:00:00Z", Some(1_793_520_000)),
            ("2026-11-01T08:00:00+02:00", Some(1_793_512_800)),
            ("1793491200", Some(1_793_491_200)),
            ("0", Some(0)),
            ("yesterday", None),
            ("2026-13-01", None),
            ("1969-01-01", None),
            ("-5", None),
            ("", None),
        ] {
            assert_eq!(read_moment("from", text).ok(), second, "{text}");
        }
    }

    #[test]
    fn groups_are_read() {
        assert_eq!(read_groups("team, day").unwrap(), [Group::Team, Group::Day]);
        assert_eq!(read_groups("").unwrap(), []);
        assert!(read_groups("model,modle").unwrap_err().message().contains("caller, team"));
        assert!(read_groups("team,team").is_err());
    }
}
