//! One line of the access log, for machines and for eyes.

use super::object::Object;
use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};
use tidegate_core::{Error, Front, Kind, Money, Origin, redact};
use tidegate_engine::{Outcome, Record};
use tidegate_http::Refused;

/// The line of a call. What is not known is left out.
pub(super) struct Line<'a> {
    time: String,
    request_id: &'a str,
    front: &'static str,
    caller: &'a str,
    operation: &'static str,
    /// As the caller wrote it, which may be a key put into the wrong field.
    model: Cow<'a, str>,
    stream: bool,
    upstream: Option<&'a str>,
    upstream_model: Option<&'a str>,
    status: u16,
    class: &'static str,
    code: Option<&'static str>,
    attempts: u32,
    duration_ms: f64,
    ttft_ms: Option<f64>,
    input_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    /// Of all attempts; left out when a price is unknown.
    cost_usd: Option<f64>,
}

impl<'a> Line<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        let (status, class, code) = ending(record);
        let usage = record.usage;
        Self {
            time: show_time(record.started_at),
            request_id: &record.id,
            front: record.front.name(),
            caller: &record.tenant,
            operation: record.operation.name(),
            model: redact(&record.model),
            stream: record.stream,
            upstream: record.upstream.as_deref(),
            upstream_model: record.upstream_model.as_deref(),
            status,
            class,
            code,
            attempts: record.attempts,
            duration_ms: millis(record.duration),
            ttft_ms: record.first_chunk.map(millis),
            input_tokens: usage.map(|usage| usage.input),
            cached_input_tokens: usage.map(|usage| usage.cached_input).filter(|n| *n > 0),
            output_tokens: usage.map(|usage| usage.output),
            reasoning_tokens: usage.map(|usage| usage.reasoning).filter(|n| *n > 0),
            cost_usd: record.cost.map(Money::usd),
        }
    }

    pub(super) fn json(&self, into: &mut Vec<u8>) {
        let mut line = Object::open(into);
        line.text("time", &*self.time);
        line.text("request_id", self.request_id);
        line.text("front", self.front);
        line.text("caller", self.caller);
        line.text("operation", self.operation);
        line.text("model", &*self.model);
        line.value("stream", self.stream);
        line.text("upstream", self.upstream);
        line.text("upstream_model", self.upstream_model);
        line.value("status", self.status);
        line.text("class", self.class);
        line.text("code", self.code);
        line.value("attempts", self.attempts);
        line.value("duration_ms", self.duration_ms);
        line.known("ttft_ms", self.ttft_ms);
        line.known("input_tokens", self.input_tokens);
        line.known("cached_input_tokens", self.cached_input_tokens);
        line.known("output_tokens", self.output_tokens);
        line.known("reasoning_tokens", self.reasoning_tokens);
        line.known("cost_usd", self.cost_usd);
        line.close();
    }

    /// For eyes: `12:03:04 200 chat -> vllm 1.24 s (first 0.31 s) 12+345 tokens`.
    pub(super) fn pretty(&self, into: &mut Vec<u8>) {
        let mut line = format!("{} {} {}", clock(&self.time), self.status, self.model);
        let mut say = |part: String| line.push_str(&part);
        if let Some(upstream) = self.upstream {
            say(format!(" -> {upstream}"));
        }
        say(format!(" {}", seconds(self.duration_ms)));
        if let Some(first) = self.ttft_ms.filter(|_| self.stream) {
            say(format!(" (first {})", seconds(first)));
        }
        if let (Some(input), Some(output)) = (self.input_tokens, self.output_tokens) {
            say(format!(" {input}+{output} tokens"));
        }
        if self.attempts > 1 {
            say(format!(" {} attempts", self.attempts));
        }
        if let Some(code) = self.code {
            say(format!(" {code} ({})", self.class));
        }
        write_plain(&line, into);
    }
}

/// The line of a request that never became a call.
pub(super) struct RefusedLine<'a> {
    time: String,
    request_id: &'a str,
    front: &'static str,
    /// Left out where the key was not good, or not looked at.
    caller: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    status: u16,
    class: &'static str,
    code: &'static str,
    attempts: u32,
    duration_ms: f64,
}

impl<'a> RefusedLine<'a> {
    pub(super) fn of(refused: &'a Refused) -> Self {
        Self {
            time: show_time(refused.started_at),
            request_id: &refused.id,
            front: Front::Http.name(),
            caller: refused.tenant.as_deref(),
            method: &refused.method,
            path: &refused.path,
            status: refused.status,
            class: refused.class.name(),
            code: refused.code,
            attempts: 0,
            duration_ms: millis(refused.duration),
        }
    }

    pub(super) fn json(&self, into: &mut Vec<u8>) {
        let mut line = Object::open(into);
        line.text("time", &*self.time);
        line.text("request_id", self.request_id);
        line.text("front", self.front);
        line.text("caller", self.caller);
        line.text("method", self.method);
        line.text("path", self.path);
        line.value("status", self.status);
        line.text("class", self.class);
        line.text("code", self.code);
        line.value("attempts", self.attempts);
        line.value("duration_ms", self.duration_ms);
        line.close();
    }

    /// For eyes: `12:03:04 401 POST /v1/embeddings 0 ms invalid_api_key (caller)`.
    pub(super) fn pretty(&self, into: &mut Vec<u8>) {
        let Self { status, method, path, code, class, .. } = self;
        let (time, took) = (clock(&self.time), seconds(self.duration_ms));
        write_plain(&format!("{time} {status} {method} {path} {took} {code} ({class})"), into);
    }
}

/// Callers choose names and paths: no escape sequence of theirs reaches the terminal.
fn write_plain(line: &str, into: &mut Vec<u8>) {
    use std::fmt::Write;
    let mut plain = String::with_capacity(line.len());
    for c in line.chars() {
        if c.is_control() {
            write!(plain, "{}", c.escape_default()).expect("a string takes it all");
        } else {
            plain.push(c);
        }
    }
    into.extend_from_slice(plain.as_bytes());
    into.push(b'\n');
}

/// Hours, minutes and seconds of a whole time.
fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

/// Status as the caller saw it, class of SPEC section 6.1, and code.
fn ending(record: &Record) -> (u16, &'static str, Option<&'static str>) {
    let kind = match record.outcome {
        Outcome::Ok => return (200, "ok", None),
        Outcome::Failed(kind) => kind,
        Outcome::Cancelled => Kind::Cancelled,
    };
    let mut error = Error::new(kind, Origin::Gateway, String::new());
    if let Some(status) = record.upstream_status {
        error = error.with_answer(status, Default::default());
    }
    (tidegate_wire::error_body::status(&error), error.class().name(), Some(error.code()))
}

fn show_time(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    format!("{time:.3}")
}

/// Milliseconds to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn seconds(millis: f64) -> String {
    if millis < 1e3 { format!("{millis:.0} ms") } else { format!("{:.2} s", millis / 1e3) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;
    use tidegate_core::{Class, Operation, Usage};

    pub(crate) fn record() -> Record {
        Record {
            id: "req_1".into(),
            front: Front::Http,
            tenant: "4kQ0".into(),
            operation: Operation::ChatCompletions,
            model: "chat".into(),
            stream: true,
            upstream: Some("vllm".into()),
            upstream_model: Some("qwen3-8b".into()),
            attempts: 1,
            outcome: Outcome::Ok,
            upstream_status: None,
            usage: Some(Usage { input: 1000, output: 200, ..Usage::default() }),
            cost: Some(Money::from_pico(270_000_000)),
            started_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            first_chunk: Some(Duration::from_micros(310_500)),
            duration: Duration::from_millis(1240),
        }
    }

    fn json(record: &Record) -> String {
        let mut text = Vec::new();
        Line::of(record).json(&mut text);
        String::from_utf8(text).unwrap()
    }

    pub(super) fn pretty(record: &Record) -> String {
        let mut text = Vec::new();
        Line::of(record).pretty(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_line_says_what_became_of_a_call() {
        assert_eq!(
            json(&record()),
            concat!(
                r#"{"time":"2023-11-14T22:13:20.123Z","request_id":"req_1","front":"http","#,
                r#""caller":"4kQ0","operation":"chat","model":"chat","stream":true,"#,
                r#""upstream":"vllm","upstream_model":"qwen3-8b","status":200,"class":"ok","#,
                r#""attempts":1,"duration_ms":1240.0,"ttft_ms":310.5,"input_tokens":1000,"#,
                r#""output_tokens":200,"cost_usd":0.00027}"#,
                "\n"
            )
        );
        assert_eq!(
            pretty(&record()),
            "22:13:20 200 chat -> vllm 1.24 s (first 310 ms) 1000+200 tokens\n"
        );
    }

    #[test]
    fn a_failure_says_how() {
        let failed = Record {
            outcome: Outcome::Failed(Kind::RateLimited),
            upstream: None,
            upstream_model: None,
            attempts: 0,
            usage: None,
            first_chunk: None,
            model: "evil\u{1b}[31m\nname".into(),
            ..record()
        };
        let line = json(&failed);
        assert!(
            line.contains(r#""status":429,"class":"refused","code":"rate_limit_exceeded""#),
            "{line}"
        );
        assert!(!line.contains("tokens") && !line.contains("upstream"), "{line}");
        let line = pretty(&failed);
        assert!(!line.contains('\u{1b}') && line.lines().count() == 1, "{line}");
        let gone = Record { outcome: Outcome::Cancelled, ..record() };
        assert!(json(&gone).contains(r#""status":499,"class":"cancelled""#));
    }

    #[test]
    fn an_upstreams_404_was_logged_as_400() {
        for (kind, upstream_status, status) in [
            (Kind::Rejected, Some(404), 404),
            (Kind::Rejected, Some(422), 422),
            (Kind::Rejected, None, 400),
            // What the caller got is ours.
            (Kind::Upstream, Some(500), 502),
            (Kind::UpstreamCredential, Some(401), 502),
        ] {
            let failed = Record { outcome: Outcome::Failed(kind), upstream_status, ..record() };
            let line = json(&failed);
            assert!(line.contains(&format!(r#""status":{status},"#)), "{line}");
        }
    }

    pub(crate) fn refused() -> Refused {
        Refused {
            id: "req_2".into(),
            tenant: None,
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            status: 401,
            code: "invalid_api_key",
            class: Class::Caller,
            started_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            duration: Duration::from_micros(210),
        }
    }

    #[test]
    fn a_refused_request_had_no_line() {
        let json = |refused: &Refused| {
            let mut text = Vec::new();
            RefusedLine::of(refused).json(&mut text);
            String::from_utf8(text).unwrap()
        };
        assert_eq!(
            json(&refused()),
            concat!(
                r#"{"time":"2023-11-14T22:13:20.123Z","request_id":"req_2","front":"http","#,
                r#""method":"POST","path":"/v1/chat/completions","status":401,"class":"caller","#,
                r#""code":"invalid_api_key","attempts":0,"duration_ms":0.21}"#,
                "\n"
            )
        );
        let known = Refused { tenant: Some("4kQ0".into()), ..refused() };
        assert!(json(&known).contains(r#""front":"http","caller":"4kQ0","method""#));

        let evil = Refused { path: "/\u{1b}[31m".into(), ..refused() };
        let mut text = Vec::new();
        RefusedLine::of(&evil).pretty(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "22:13:20 401 POST /\\u{1b}[31m 0 ms invalid_api_key (caller)\n");
    }
}
