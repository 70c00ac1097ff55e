//! How connections to an upstream are made, kept and bounded.

use crate::fault::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};
use tidegate_core::Result;
use tidegate_policy::setting as written;

/// Settings of the connections to one upstream.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where the upstream is, up to and including `/v1`. Set by whoever opens it: in a
    /// configuration file it stands beside these settings, not among them.
    #[serde(skip)]
    pub base_url: String,
    /// Speak HTTP/2 without asking first (`http://`), or accept nothing else (`https://`).
    /// Default false: HTTP/2 over TLS when the server offers it, HTTP/1.1 otherwise.
    pub http2: bool,
    /// Connections open at once; further calls wait for one. At least 1. Default 1024.
    pub max_connections: usize,
    /// Unused connections kept open; the longest unused is closed first. Default 256.
    pub max_idle: usize,
    /// An unused connection is closed after this. Keep it below the server's own. Default "60s".
    #[serde(with = "written::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// A connection takes no new calls after this, give or take 10 %, so that new servers
    /// behind the same name get their share. Default "1h".
    #[serde(with = "written::duration")]
    #[schemars(with = "String")]
    pub lifetime: Duration,
    /// How long the addresses of a name are believed. When a later lookup fails, the last good
    /// ones are used. Default "30s".
    #[serde(with = "written::duration")]
    #[schemars(with = "String")]
    pub dns_ttl: Duration,
    /// After so long without a word on a connection its server is probed, and a dead one is
    /// found within as long again; "0s" never probes. Default "30s".
    #[serde(with = "written::duration")]
    #[schemars(with = "String")]
    pub keepalive: Duration,
    /// PEM file of certificate authorities trusted besides the system's. Default: none.
    pub ca_file: Option<PathBuf>,
    /// Further headers sent with every request. Values are never printed. Default: none.
    pub headers: BTreeMap<String, String>,
    /// How request bodies over 1 KiB are compressed. "auto" does it once an answer of the upstream
    /// has named a coding it takes, in its `accept-encoding` header. Few model servers take any:
    /// ask yours before setting one. A body answered with 415 is sent again plain, and its coding
    /// not used again. Default "off".
    pub compress_requests: CompressRequests,
    /// Whether the usage of streams is asked for where the caller's request has no
    /// `stream_options`. "ask" writes `include_usage` into it and takes the event that answers it
    /// out of the stream. "continuous" also asks for vLLM's `continuous_usage_stats`: every event
    /// then tells the usage so far, which is passed on, and a stream that is cut is counted as
    /// exactly as a whole one. A server that refuses the field, by 400 or 422 and its name, gets
    /// the request again without it, and no longer it. Default "ask".
    pub stream_usage: StreamUsage,
    /// Longest answer that is no stream of events, decompressed. Default "64MiB".
    #[serde(with = "written::size")]
    #[schemars(with = "String")]
    pub max_answer_bytes: usize,
}

/// How request bodies are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CompressRequests {
    /// Not at all.
    #[default]
    Off,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
    /// With what the upstream names in the `accept-encoding` header of its answers, once it has.
    ///
    /// Source: RFC 9110 §12.5.3.
    Auto,
}

/// Whether the usage of streams is asked for in the caller's stead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamUsage {
    /// It is, in an event at the end.
    #[default]
    Ask,
    /// It is, in every event.
    ///
    /// Source: vLLM, `StreamOptions.continuous_usage_stats`.
    Continuous,
    /// It is not: a stream whose caller did not ask is counted by its events.
    Off,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            http2: false,
            max_connections: 1024,
            max_idle: 256,
            idle_timeout: Duration::from_secs(60),
            lifetime: Duration::from_secs(60 * 60),
            dns_ttl: Duration::from_secs(30),
            keepalive: Duration::from_secs(30),
            ca_file: None,
            headers: BTreeMap::new(),
            compress_requests: CompressRequests::Off,
            stream_usage: StreamUsage::Ask,
            max_answer_bytes: 64 << 20,
        }
    }
}

impl Options {
    /// Refuses what could not carry a single call, and brings times that never come down to a
    /// year, which can be added to a clock.
    pub(crate) fn checked(mut self, upstream: &str) -> Result<Self> {
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        for time in [&mut self.idle_timeout, &mut self.lifetime, &mut self.dns_ttl] {
            *time = FAR.min(*time);
        }
        let zero = [
            ("max_connections", self.max_connections == 0),
            ("idle_timeout", self.idle_timeout.is_zero()),
            ("lifetime", self.lifetime.is_zero()),
            ("max_answer_bytes", self.max_answer_bytes == 0),
        ];
        match zero.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((field, _)) => Err(setting(upstream, field, "must be more than zero")),
            None => Ok(self),
        }
    }
}

impl fmt::Debug for Options {
    /// Everything but the URL's secrets and the headers' values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("http2", &self.http2)
            .field("max_connections", &self.max_connections)
            .field("max_idle", &self.max_idle)
            .field("idle_timeout", &self.idle_timeout)
            .field("lifetime", &self.lifetime)
            .field("dns_ttl", &self.dns_ttl)
            .field("keepalive", &self.keepalive)
            .field("ca_file", &self.ca_file)
            .field("headers", &self.headers.keys())
            .field("compress_requests", &self.compress_requests)
            .field("stream_usage", &self.stream_usage)
            .field("max_answer_bytes", &self.max_answer_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_again() {
        let options: Options = serde_json::from_str(
            r#"{"dns_ttl":"5s","max_answer_bytes":"1MiB","compress_requests":"zstd",
                "stream_usage":"continuous"}"#,
        )
        .unwrap();
        assert_eq!(options.dns_ttl, Duration::from_secs(5));
        assert_eq!(options.max_answer_bytes, 1 << 20);
        assert_eq!(options.compress_requests, CompressRequests::Zstd);
        assert_eq!(options.stream_usage, StreamUsage::Continuous);
        let written = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), options);
        assert!(serde_json::from_str::<Options>(r#"{"max_conections":1}"#).is_err());
    }

    #[test]
    fn header_values_are_not_printed() {
        let headers = BTreeMap::from([("api-key".into(), "canary".into())]);
        let printed = format!("{:?}", Options { headers, ..Options::default() });
        assert!(printed.contains("api-key") && !printed.contains("canary"));
    }
}
