//! Numbers as people read them.

/// `812 µs`, `12.3 ms`, `1.24 s`, `95 s`.
pub(crate) fn ms(millis: f64) -> String {
    match millis {
        m if m <= 0.0 => "0 ms".into(),
        m if m < 0.9995 => format!("{:.0} µs", m * 1000.0),
        m if m < 9.995 => format!("{m:.2} ms"),
        m if m < 99.95 => format!("{m:.1} ms"),
        m if m < 999.5 => format!("{m:.0} ms"),
        m if m < 9995.0 => format!("{:.2} s", m / 1000.0),
        m if m < 99_950.0 => format!("{:.1} s", m / 1000.0),
        m => format!("{:.0} s", m / 1000.0),
    }
}

/// As [`ms`], without zeros behind the point: `10 s`, `0.5 ms`.
pub(crate) fn ms_short(millis: f64) -> String {
    let text = ms(millis);
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    format!("{} {unit}", without_zeros(number))
}

/// As [`rate`], without zeros behind the point.
pub(crate) fn rate_short(per_second: f64) -> String {
    without_zeros(&rate(per_second)).to_owned()
}

fn without_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 request`, `1,234 requests`.
pub(crate) fn plural(number: u64, word: &str) -> String {
    format!("{} {word}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `0.12`, `9.9`, `1,234`.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if r < 0.005 => "0".into(),
        r if r < 9.995 => format!("{r:.2}"),
        r if r < 999.95 => format!("{r:.1}"),
        r => count(r.round() as u64),
    }
}

/// `12.3 MiB`.
pub(crate) fn bytes(bytes: f64) -> String {
    let mut left = bytes;
    for unit in ["B", "KiB", "MiB"] {
        if left < 1023.95 {
            return if unit == "B" { format!("{left:.0} B") } else { format!("{left:.1} {unit}") };
        }
        left /= 1024.0;
    }
    format!("{left:.1} GiB")
}

/// `99.63 %`; never `100 %` or `0 %` of what is not.
pub(crate) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".into();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    match percent {
        p if part == 0 || part == whole => format!("{p:.0} %"),
        p => format!("{:.2} %", p.clamp(0.01, 99.99)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (millis, text) in [
            (0.0, "0 ms"),
            (0.0804, "80 µs"),
            (0.9999, "1.00 ms"),
            (12.34, "12.3 ms"),
            (99.96, "100 ms"),
            (1234.0, "1.23 s"),
            (99_990.0, "100 s"),
        ] {
            assert_eq!(ms(millis), text);
        }
        assert_eq!((ms_short(10_000.0), ms_short(0.5)), ("10 s".into(), "500 µs".into()));
        assert_eq!((rate_short(250.0), rate_short(1500.0)), ("250".into(), "1,500".into()));
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!((plural(1, "request"), plural(0, "request")), {
            ("1 request".into(), "0 requests".into())
        });
        assert_eq!((rate(0.0), rate(1.5), rate(199.96), rate(12_345.6)), {
            ("0".into(), "1.50".into(), "200.0".into(), "12,346".into())
        });
        assert_eq!((bytes(12.0), bytes(1536.0)), ("12 B".into(), "1.5 KiB".into()));
        assert_eq!((share(0, 5), share(5, 5)), ("0 %".into(), "100 %".into()));
        assert_eq!((share(99_999, 100_000), share(1, 0)), ("99.99 %".into(), "–".into()));
    }
}
