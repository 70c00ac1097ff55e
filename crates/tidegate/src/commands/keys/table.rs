//! Keys as people read them: a table of all, a sheet of one.

use jiff::Timestamp;
use tidegate_core::{Budgets, KeyRecord, Limits, Scope};

const HEAD: [&str; 9] =
    ["ID", "NAME", "TEAM", "MODELS", "LIMITS", "BUDGETS", "CREATED", "EXPIRES", "STATE"];

/// One line per key.
pub(super) fn of(keys: &[KeyRecord], now: u64) -> String {
    let rows: Vec<[String; HEAD.len()]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(keys.iter().map(|key| cells(key, now)))
        .collect();
    let mut width = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in width.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(width).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// One line per field.
pub(super) fn sheet(key: &KeyRecord, now: u64) -> String {
    let mut lines: Vec<(String, String)> =
        HEAD.iter().map(|head| head.to_lowercase()).zip(cells(key, now)).collect();
    if let Some(former) = key.former.filter(|former| now < former.until) {
        lines.push(("old secret".into(), format!("good until {}", time(former.until))));
    }
    if let Some(revoked) = key.revoked_at {
        lines.push(("revoked".into(), time(revoked)));
    }
    lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

fn cells(key: &KeyRecord, now: u64) -> [String; HEAD.len()] {
    [
        key.id.to_string(),
        key.name.to_string(),
        key.team.as_deref().unwrap_or("-").to_owned(),
        match &key.scope {
            Scope::All => "all".to_owned(),
            Scope::Models(models) => models.join(","),
        },
        key.limits.map_or_else(|| "default".to_owned(), limits),
        budgets(key.budgets),
        time(key.created_at),
        key.expires_at.map_or_else(|| "never".to_owned(), time),
        key.state(now).name().to_owned(),
    ]
}

fn limits(limits: Limits) -> String {
    list([
        limits.requests_per_minute.map(|rpm| format!("{rpm} rpm")),
        limits.tokens_per_minute.map(|tpm| format!("{tpm} tpm")),
        limits.cost_per_minute.map(|cost| format!("{cost}/min")),
        limits.concurrency.map(|calls| format!("{calls} at once")),
    ])
}

fn budgets(budgets: Budgets) -> String {
    let hard = (budgets.hard && !budgets.is_none()).then(|| "hard".to_owned());
    list([
        budgets.day.map(|money| format!("{money}/day")),
        budgets.month.map(|money| format!("{money}/month")),
        budgets.total.map(|money| format!("{money} in all")),
        hard,
    ])
}

fn list(words: [Option<String>; 4]) -> String {
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// RFC 3339, UTC.
fn time(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok());
    time.map_or_else(|| unix.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Former, Money};
    use tidegate_store::key;

    #[test]
    fn a_table_shows_what_a_key_may_do_and_no_secret() {
        let (secret, plain) = key::mint("plain", 0).unwrap();
        let mut bound = KeyRecord { id: "bound".into(), ..plain.clone() };
        bound.team = Some("search".into());
        bound.scope = Scope::Models(vec!["chat".into(), "embed".into()]);
        bound.limits = Some(Limits { requests_per_minute: Some(60), ..Limits::default() });
        bound.budgets = Budgets { day: Money::from_usd(12.5), hard: true, ..Budgets::default() };
        bound.expires_at = Some(2_592_000);
        bound.former = Some(Former { hash: [0; 32], until: 1_000_000 });
        let text = of(&[plain.clone(), bound.clone()], 7);
        assert!(!text.contains(&secret.expose()[16..]), "{text}");
        for words in [
            "all",
            "default",
            "none",
            "never",
            "valid",
            "chat,embed",
            "60 rpm",
            "$12.50/day, hard",
            "1970-01-31T00:00:00Z",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let sheet = sheet(&bound, 7);
        assert!(sheet.contains("old secret  good until 1970-01-12T13:46:40Z"), "{sheet}");
        assert!(of(&[bound], 2_592_000).contains("expired"));
        let unlimited = KeyRecord { limits: Some(Limits::default()), ..plain };
        assert!(!of(&[unlimited], 7).contains("default"), "no limits are not the default ones");
    }
}
