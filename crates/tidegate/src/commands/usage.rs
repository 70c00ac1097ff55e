//! `tidegate usage`: what was used and what it cost, out of the ledger.

use crate::{
    config::{self, Environment, Override, Sources},
    output,
};
use anyhow::Context;
use std::{
    fs,
    io::{self, IsTerminal},
    path::PathBuf,
    sync::Arc,
};
use tidegate_core::{Group, Kind, UsageQuery, UsageRow};
use tidegate_http::usage::{self, DEFAULT_ROWS, Format};
use tidegate_store::ledger::Books;

/// Exit code of a question that cannot be answered before something is changed.
const USAGE: u8 = 2;

/// Sums up what callers used and what it cost
///
/// Reads the ledger itself, whether a gateway runs or not: the file in the data directory, or the
/// PostgreSQL database of the configuration or of DATABASE_URL. What was asked for in the last
/// second may not be in it yet.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate usage
  tidegate usage --group-by team,model --from 2026-11-01
  tidegate usage --group-by day --caller 3kTMd8Kpk0mN --format csv
  tidegate usage --group-by day,caller,model --format parquet --output usage.parquet")]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// What each row is of: caller, team, model, upstream, cause, day, separated by commas
    /// [default: one row in all]
    #[arg(long, value_name = "GROUPS", default_value = "", hide_default_value = true,
          value_parser = groups)]
    group_by: Groups,
    /// From here on: a day (UTC) like 2026-11-01, a time like 2026-11-01T08:00:00Z, or Unix
    /// seconds [default: the first entry]
    #[arg(long, value_name = "WHEN", value_parser = |text: &str| moment("from", text))]
    from: Option<u64>,
    /// Up to, and without, this moment [default: now]
    #[arg(long, value_name = "WHEN", value_parser = |text: &str| moment("to", text))]
    to: Option<u64>,
    /// Of this caller only, by the id of its key
    #[arg(long, value_name = "ID")]
    caller: Option<String>,
    /// Of this team only
    #[arg(long, value_name = "NAME")]
    team: Option<String>,
    /// Of this model only, as callers name it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Of this upstream only
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Rows at most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ROWS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(UsageQuery::MAX_ROWS)))]
    limit: u32,
    /// How it is written
    #[arg(long, value_name = "FORMAT", default_value = "table",
          value_parser = ["table", "json", "csv", "parquet"])]
    format: String,
    /// Where it is written [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Directory of the state [default: .tidegate]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

/// A list that clap takes as one value.
#[derive(Clone, Debug)]
struct Groups(Vec<Group>);

fn groups(text: &str) -> Result<Groups, String> {
    usage::read_groups(text).map(Groups).map_err(|error| error.message().to_owned())
}

fn moment(param: &'static str, text: &str) -> Result<u64, String> {
    usage::read_moment(param, text).map_err(|error| error.message().to_owned())
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let format = Format::named(&args.format);
    if format == Some(Format::Parquet) && args.output.is_none() && io::stdout().is_terminal() {
        output::note("error: parquet is not for terminals: name a file with --output");
        return Ok(USAGE);
    }
    let (sources, query, to) = asked(args);
    let (config, database) = match config::load_ledger(&sources, &Environment::current()) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(problems.report()),
    };
    let Some(database) = database else {
        output::note("error: there is no ledger: ledger.enabled is false in the configuration");
        return Ok(USAGE);
    };
    let books = Books::of(&config.server.data_dir, &database)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = match runtime.block_on(books.usage(&query)) {
        Err(error) if error.kind() == Kind::NotFound => {
            output::note(&format!(
                "{}: start one with `tidegate serve`, or name the right directory with --data-dir",
                error.message()
            ));
            return Ok(USAGE);
        }
        rows => rows?,
    };
    let bytes = match format {
        Some(format) => usage::encode(format, &query, &rows),
        None => table(&query, &rows).into(),
    };
    match to {
        Some(path) => {
            fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        }
        None => output::bytes(&bytes)?,
    }
    if usage::is_truncated(&query, &rows) {
        let limit = query.limit;
        output::note(&format!("these are the first {limit} rows: --limit asks for more"));
    }
    Ok(0)
}

/// Where to look, what is asked, and where the answer goes.
fn asked(args: Args) -> (Sources, UsageQuery, Option<PathBuf>) {
    let mut sources = args.sources;
    if let Some(value) = args.data_dir {
        let key = &["server", "data_dir"][..];
        sources.overrides.push(Override { flag: "--data-dir", key, value });
    }
    let only = |name: Option<String>| name.map(Arc::from);
    let query = UsageQuery {
        from: args.from,
        to: args.to,
        caller: only(args.caller),
        team: only(args.team),
        model: only(args.model),
        upstream: only(args.upstream),
        group_by: args.group_by.0,
        limit: args.limit,
        ..UsageQuery::default()
    };
    (sources, query, args.output)
}

/// A name as a terminal may have it: what would move its cursor or end the line is escaped.
fn shown(name: &str) -> String {
    if name.is_empty() {
        return "-".into();
    }
    let mut shown = String::with_capacity(name.len());
    for char in name.chars() {
        if char.is_control() { shown.extend(char.escape_default()) } else { shown.push(char) }
    }
    shown
}

/// For eyes: names to the left, numbers to the right.
fn table(query: &UsageQuery, rows: &[UsageRow]) -> String {
    const NUMBERS: [&str; 10] = [
        "ATTEMPTS",
        "CALLS",
        "FAILED",
        "INPUT",
        "CACHED",
        "WRITTEN",
        "OUTPUT",
        "REASONING",
        "UNPRICED",
        "COST",
    ];
    let names = query.group_by.iter().map(|group| group.name().to_uppercase());
    let mut lines = vec![names.chain(NUMBERS.map(str::to_owned)).collect::<Vec<_>>()];
    for row in rows {
        let of = row.of.iter().map(|name| shown(name));
        let used = row.usage;
        let numbers = [
            row.attempts,
            row.calls,
            row.failed,
            used.input,
            used.cached_input,
            used.cache_write,
            used.output,
            used.reasoning,
            row.unpriced,
        ];
        let numbers = numbers.into_iter().map(|number| number.to_string());
        lines.push(of.chain(numbers).chain([row.cost.to_string()]).collect());
    }
    let groups = query.group_by.len();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..lines[0].len()).filter_map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < groups { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Money, Usage};

    #[test]
    fn a_table_has_no_control_characters() {
        let query = UsageQuery { group_by: vec![Group::Caller], ..UsageQuery::default() };
        let row = UsageRow { of: vec!["\u{1b}[2J\nü".into()], ..UsageRow::default() };
        let text = table(&query, &[row]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains(r"\u{1b}[2J\nü  "), "{text}");
    }

    #[test]
    fn a_table_is_aligned() {
        let query = UsageQuery { group_by: vec![Group::Team], ..UsageQuery::default() };
        let row = |team: &str, attempts| UsageRow {
            of: vec![team.to_owned()],
            attempts,
            calls: 1,
            usage: Usage { input: 1_200, ..Usage::default() },
            cost: Money::from_pico(1_500_000_000_000),
            ..UsageRow::default()
        };
        assert_eq!(
            table(&query, &[row("", 3), row("search", 12)]),
            "TEAM    ATTEMPTS  CALLS  FAILED  INPUT  CACHED  WRITTEN  OUTPUT  REASONING  UNPRICED   COST\n\
             -              3      1       0   1200       0        0       0          0         0  $1.50\n\
             search        12      1       0   1200       0        0       0          0         0  $1.50\n"
        );
    }
}
