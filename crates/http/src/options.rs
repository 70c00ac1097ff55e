//! What can be set about the front, with the reasons for the defaults.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, io, path::PathBuf, time::Duration};
use tidegate_policy::setting;

/// Limits and timers of the callers' port.
///
/// None but `max_wrong_keys` can be switched off: each bounds what one caller can hold of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Certificate and key, set by whoever serves: in a configuration file they stand beside
    /// these settings, not among them. Callers then speak TLS, HTTP/2 or HTTP/1.1 by ALPN. Default: none,
    /// plain HTTP/1.1 and HTTP/2 with prior knowledge.
    #[serde(skip)]
    pub tls: Option<Tls>,
    /// Which answers are compressed, set by whoever serves: it is a choice, not a limit.
    #[serde(skip)]
    pub compression: Compression,
    /// Headers that routing looks at, set by whoever serves: they are copied from the request
    /// into its call. Default: none.
    #[serde(skip)]
    pub routed_headers: Vec<String>,
    /// Longest request body. Default `"16MiB"`, enough for a few images in base64.
    #[serde(with = "setting::size")]
    #[schemars(with = "String")]
    pub max_body: usize,
    /// Deadline of a call whose caller names none. Default `"10m"`, what OpenAI's own clients wait.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub default_timeout: Duration,
    /// Longest deadline a caller may ask for with `x-tidegate-timeout`; longer ones are cut to
    /// this. Default `"1h"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub max_timeout: Duration,
    /// From the first byte of a request's head to its last, and from connecting to the first
    /// byte. Default `"10s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request. Default `"60s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// Longest TLS handshake. Default `"5s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub handshake_timeout: Duration,
    /// How long a body may take before its pace is looked at. Default `"10s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub body_grace: Duration,
    /// Slowest pace of a body after the grace, per second. Default `"1KiB"`.
    #[serde(with = "setting::size")]
    #[schemars(with = "String")]
    pub min_body_rate: usize,
    /// How long a caller may read nothing while we have bytes for it. Default `"30s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub write_timeout: Duration,
    /// Connections at once; one more is closed as soon as it is accepted. Default 10,000.
    pub max_connections: usize,
    /// Connections at once from one address. Default 1,024: a load balancer is one address.
    pub max_connections_per_ip: usize,
    /// Wrong keys and tokens a minute from one address (IPv6: one /64) that are told to be wrong;
    /// more are answered 429 with a wait, 30 s at first and up to 15 min. Valid ones are answered
    /// all the time, whatever else comes from their address. 0 sets no bound. Default 10.
    pub max_wrong_keys: u32,
    /// Calls at once on one HTTP/2 connection. Default 100.
    pub max_streams: u32,
    /// How long `/readyz` says 503 before the listener closes, so that a load balancer can look
    /// away first. Default `"0s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub drain_notice: Duration,
    /// How long calls in flight may take to finish once the listener is closed. Default `"30s"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
}

/// Which answers are compressed for callers that take it, by `Accept-Encoding`: zstd, brotli or
/// gzip, at their fastest useful levels. Event streams never are.
///
/// Default: those of at least 16 KiB, the length from which compressing saves round trips; what
/// is shorter leaves in one flight either way. Written as a size or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub enum Compression {
    /// None.
    Off,
    /// Those of at least so many bytes.
    From(usize),
}

impl Default for Compression {
    fn default() -> Self {
        Self::From(16 << 10)
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => to.serialize_str("off"),
            Self::From(bytes) => setting::size::serialize(bytes, to),
        }
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        if text == "off" {
            return Ok(Self::Off);
        }
        let size = setting::parse_size(&text).map_err(|message| {
            de::Error::custom(format!("{message}; or \"off\": no answer is compressed"))
        });
        size.map(Self::From)
    }
}

/// Where the certificate chain and its key are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate, then its intermediates.
    pub cert: PathBuf,
    /// PEM file with the private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: None,
            compression: Compression::default(),
            routed_headers: Vec::new(),
            max_body: 16 << 20,
            default_timeout: Duration::from_secs(600),
            max_timeout: Duration::from_secs(3600),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(5),
            body_grace: Duration::from_secs(10),
            min_body_rate: 1 << 10,
            write_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            max_connections_per_ip: 1024,
            max_wrong_keys: 10,
            max_streams: 100,
            drain_notice: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// Whether a server can be started with these: ranges, and the files of [`Options::tls`].
    ///
    /// # Errors
    ///
    /// Names the option or the file, and what to do.
    pub fn check(&self) -> io::Result<()> {
        self.check_ranges()?;
        self.tls.as_ref().map_or(Ok(()), |tls| crate::tls::acceptor(tls).map(drop))
    }

    pub(crate) fn check_ranges(&self) -> io::Result<()> {
        let zero = [
            ("max_body", self.max_body == 0),
            ("default_timeout", self.default_timeout.is_zero()),
            ("max_timeout", self.max_timeout.is_zero()),
            ("header_timeout", self.header_timeout.is_zero()),
            ("idle_timeout", self.idle_timeout.is_zero()),
            ("handshake_timeout", self.handshake_timeout.is_zero()),
            ("min_body_rate", self.min_body_rate == 0),
            ("write_timeout", self.write_timeout.is_zero()),
            ("max_connections", self.max_connections == 0),
            ("max_connections_per_ip", self.max_connections_per_ip == 0),
            ("max_streams", self.max_streams == 0),
        ];
        match zero.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((name, _)) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name} is zero: nothing could be served; give it a value above zero"),
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_can_be_written_and_read_back() {
        let written = serde_json::to_string(&Options::default()).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), Options::default());
        assert!(written.contains(r#""max_body":"16MiB""#), "{written}");
        let error = serde_json::from_str::<Options>(r#"{"max_bdy":1}"#).unwrap_err();
        assert!(error.to_string().contains("max_bdy"), "{error}");
    }

    #[test]
    fn compression_is_a_size_or_off() {
        let read = |text: &str| serde_json::from_str::<Compression>(text);
        for (text, expected) in [
            (r#""off""#, Compression::Off),
            (r#""1KiB""#, Compression::From(1 << 10)),
            (r#""0B""#, Compression::From(0)),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
            assert_eq!(serde_json::to_string(&expected).unwrap(), text);
        }
        let error = read(r#""on""#).unwrap_err().to_string();
        assert!(error.contains("`on`") && error.contains("or \"off\""), "{error}");
    }

    #[test]
    fn zero_is_refused_by_name() {
        let options = Options { max_streams: 0, ..Options::default() };
        assert!(options.check().unwrap_err().to_string().starts_with("max_streams is zero"));
        Options::default().check().unwrap();
    }
}
