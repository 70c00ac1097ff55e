//! The one question that is asked of a ledger, in the SQL both databases speak.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};
use tidegate_core::{Group, Money, Usage, UsageQuery, UsageRow};

/// Where the two differ.
pub(super) struct Dialect {
    /// What comes before the number of a parameter.
    pub(super) parameter: char,
    /// The day of `at`, UTC, as `2026-11-21`.
    pub(super) day: &'static str,
    /// What microseconds since 1970 are compared with `at` as.
    pub(super) instant: fn(u64) -> String,
}

/// Sums that follow the groups, in the order [`row`] takes them.
///
/// Cost is summed in two parts, above and below a millionth of a dollar: neither overflows before
/// nine trillion dollars or entries.
const SUMS: &str = "count(*), \
    count(*) FILTER (WHERE cause IN ('first', 'batch')), \
    count(*) FILTER (WHERE failure IS NOT NULL), \
    CAST(coalesce(sum(input), 0) AS BIGINT), \
    CAST(coalesce(sum(cached_input), 0) AS BIGINT), \
    CAST(coalesce(sum(cache_write), 0) AS BIGINT), \
    CAST(coalesce(sum(output), 0) AS BIGINT), \
    CAST(coalesce(sum(reasoning), 0) AS BIGINT), \
    CAST(coalesce(sum(cost / 1000000), 0) AS BIGINT), \
    CAST(coalesce(sum(cost % 1000000), 0) AS BIGINT), \
    count(*) FILTER (WHERE cost IS NULL AND input + output > 0)";

/// How many numbers [`SUMS`] gives.
pub(super) const NUMBERS: usize = 11;

/// Seconds until the year 9999: no database has later days.
const LAST: u64 = 253_402_300_799;

/// The statement, and its parameters in order.
pub(super) fn statement<'q>(query: &'q UsageQuery, dialect: &Dialect) -> (String, Vec<&'q str>) {
    let groups: Vec<&str> = query.group_by.iter().map(|group| column(*group, dialect)).collect();
    let mut sql = String::from("SELECT ");
    for group in &groups {
        sql.push_str(group);
        sql.push_str(", ");
    }
    sql.push_str(SUMS);
    sql.push_str(" FROM tidegate_ledger WHERE 1 = 1");
    let mut written = |piece: std::fmt::Arguments<'_>| {
        sql.write_fmt(piece).expect("a string takes what is written");
    };
    let of_second = |second: u64| second.min(LAST) * 1_000_000;
    let of_moment = |moment: SystemTime| {
        let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX).min(of_second(LAST))
    };
    for (micros, compared) in [
        (query.from.map(of_second), ">="),
        (query.to.map(of_second), "<"),
        (query.before.map(of_moment), "<"),
    ] {
        if let Some(micros) = micros {
            written(format_args!(" AND at {compared} {}", (dialect.instant)(micros)));
        }
    }
    let mut parameters = Vec::new();
    for (only, column) in [
        (&query.caller, "caller"),
        (&query.team, "team"),
        (&query.model, "model"),
        (&query.upstream, "upstream"),
    ] {
        if let Some(only) = only {
            parameters.push(&**only);
            written(format_args!(" AND {column} = {}{}", dialect.parameter, parameters.len()));
        }
    }
    if query.without_mirrors {
        written(format_args!(" AND cause <> 'mirror'"));
    }
    if !groups.is_empty() {
        let groups = groups.join(", ");
        written(format_args!(" GROUP BY {groups} ORDER BY {groups}"));
    }
    let limit = if query.limit == 0 { UsageQuery::MAX_ROWS } else { query.limit };
    written(format_args!(" LIMIT {}", limit.min(UsageQuery::MAX_ROWS)));
    (sql, parameters)
}

const fn column(group: Group, dialect: &Dialect) -> &'static str {
    match group {
        Group::Caller => "caller",
        Group::Team => "coalesce(team, '')",
        Group::Model => "model",
        Group::Upstream => "upstream",
        Group::Cause => "cause",
        Group::Day => dialect.day,
    }
}

/// A row of the answer.
pub(super) fn row(of: Vec<String>, numbers: [i64; NUMBERS]) -> UsageRow {
    let [attempts, calls, failed, tokens @ .., micro, pico, unpriced] =
        numbers.map(i64::unsigned_abs);
    let [input, cached_input, cache_write, output, reasoning] = tokens;
    UsageRow {
        of,
        attempts,
        calls,
        failed,
        usage: Usage { input, cached_input, cache_write, output, reasoning },
        cost: Money::from_pico(1_000_000).times(micro).plus(Money::from_pico(pico)),
        unpriced,
    }
}
