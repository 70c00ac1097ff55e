//! `GET /admin/usage`: what was used and what it cost.
//!
//! | parameter | is |
//! |---|---|
//! | `group_by` | of caller, team, model, upstream, cause and day, separated by commas; none: one row in all |
//! | `from`, `to` | from this moment on, and before that one: a day (UTC), a time, or Unix seconds |
//! | `caller`, `team`, `model`, `upstream` | of this one only |
//! | `limit` | rows at most, up to 100,000; 10,000 unless it is said |
//! | `format` | json, csv or parquet |

use crate::{
    oauth::form::decode,
    outcome::Success,
    refusal::Refusal,
    usage::{self, DEFAULT_ROWS, Format},
};
use tidegate_core::{Error, Kind, Ledger, Origin, UsageQuery};

/// Answers it from `ledger`, where there is one.
pub(super) async fn answer(
    ledger: Option<&dyn Ledger>,
    query: Option<&str>,
) -> Result<Success, Refusal> {
    let Some(ledger) = ledger else {
        let message = "this gateway keeps no ledger: ledger.enabled is false";
        return Err(Error::new(Kind::NotFound, Origin::Caller, message).into());
    };
    let (query, format) = read(query.unwrap_or_default())?;
    let rows = ledger.usage(&query).await?;
    let bytes = usage::encode(format, &query, &rows);
    Ok(Success::File { content_type: format.content_type(), bytes })
}

fn read(text: &str) -> Result<(UsageQuery, Format), Error> {
    let mut query = UsageQuery { limit: DEFAULT_ROWS, ..UsageQuery::default() };
    let mut format = Format::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value.as_bytes()).ok_or_else(|| {
            Error::new(Kind::InvalidRequest, Origin::Caller, "the query is not escaped UTF-8")
        })?;
        match name {
            "group_by" => query.group_by = usage::read_groups(&value)?,
            "from" => query.from = Some(usage::read_moment("from", &value)?),
            "to" => query.to = Some(usage::read_moment("to", &value)?),
            "caller" => query.caller = Some(value.into()),
            "team" => query.team = Some(value.into()),
            "model" => query.model = Some(value.into()),
            "upstream" => query.upstream = Some(value.into()),
            "limit" => query.limit = read_limit(&value)?,
            "format" => {
                format = Format::named(&value).ok_or_else(|| {
                    Error::invalid("format", "the format is json, csv or parquet")
                })?;
            }
            _ => {
                let message = "the query has an unknown parameter: take of group_by, from, to, \
                               caller, team, model, upstream, limit, format";
                return Err(Error::new(Kind::InvalidRequest, Origin::Caller, message));
            }
        }
    }
    Ok((query, format))
}

fn read_limit(text: &str) -> Result<u32, Error> {
    let most = UsageQuery::MAX_ROWS;
    let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
    limit.ok_or_else(|| Error::invalid("limit", format!("the limit is a number from 1 to {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Group;

    #[test]
    fn a_query_is_read() {
        let text = "group_by=team%2Cmodel&from=2026-11-01&to=1793577600&caller=a%20b&team=x+y\
                    &model=m&upstream=u&limit=5&format=csv";
        let (query, format) = read(text).unwrap();
        let expected = UsageQuery {
            from: Some(1_793_491_200),
            to: Some(1_793_577_600),
            caller: Some("a b".into()),
            team: Some("x y".into()),
            model: Some("m".into()),
            upstream: Some("u".into()),
            group_by: vec![Group::Team, Group::Model],
            limit: 5,
            ..UsageQuery::default()
        };
        assert_eq!((query, format), (expected, Format::Csv));
        let (all, format) = read("").unwrap();
        assert_eq!((all.limit, all.group_by.len(), format), (10_000, 0, Format::Json));
    }

    #[test]
    fn what_cannot_be_answered_names_the_parameter() {
        for (text, param) in [
            ("group_by=modle", Some("group_by")),
            ("from=yesterday", Some("from")),
            ("to=", Some("to")),
            ("limit=0", Some("limit")),
            ("limit=100001", Some("limit")),
            ("format=xml", Some("format")),
            ("groupby=team", None),
            ("team=%zz", None),
            ("team=%ff", None),
            ("team=%f", None),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!((error.kind(), error.param()), (Kind::InvalidRequest, param), "{text}");
        }
    }
}
