//! The two ports and where state is kept.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    borrow::Cow,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tidegate_policy::setting::SecretRef;

/// The two ports and where state is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// Address and port for callers: HTTP/1.1 and HTTP/2. Port 0 takes a free one. Default
    /// "127.0.0.1:8080".
    #[serde(deserialize_with = "read_address")]
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// Address and port for operators: what the upstreams are doing. Port 0 takes a free one,
    /// "off" none. An address that other machines can reach needs `admin_token`. Default
    /// "127.0.0.1:8081".
    pub(crate) admin_listen: AdminListen,
    /// What operators send as `Authorization: Bearer`. Default: none, and the admin port answers
    /// whoever is on this machine.
    pub(crate) admin_token: Option<SecretRef>,
    /// Directory of the state, made if it is not there, for this user only. Default ".tidegate".
    pub(crate) data_dir: PathBuf,
    /// Certificate and key of the callers' port. Default: none, and callers speak plain HTTP.
    pub(crate) tls: Option<tidegate_http::Tls>,
    /// Which answers are compressed for callers that take it, zstd, brotli or gzip by
    /// `Accept-Encoding`: those of at least this size, or "off". Event streams never are. Default
    /// "16KiB", the size from which it saves round trips.
    pub(crate) compression: tidegate_http::Compression,
    /// Limits and timers of the callers' port.
    pub(crate) limits: tidegate_http::Options,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            admin_listen: AdminListen::default(),
            admin_token: None,
            data_dir: ".tidegate".into(),
            tls: None,
            compression: tidegate_http::Compression::default(),
            limits: tidegate_http::Options::default(),
        }
    }
}

/// Where operators are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub(crate) enum AdminListen {
    /// Nowhere.
    Off,
    /// On this address and port.
    At(SocketAddr),
}

impl Default for AdminListen {
    fn default() -> Self {
        Self::At((Ipv4Addr::LOCALHOST, 8081).into())
    }
}

impl<'de> Deserialize<'de> for AdminListen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = parse_address(&text, "; \"off\" for no admin port");
        address.map(Self::At).map_err(de::Error::custom)
    }
}

impl Serialize for AdminListen {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => to.serialize_str("off"),
            Self::At(address) => address.serialize(to),
        }
    }
}

fn read_address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = Cow::<'de, str>::deserialize(from)?;
    parse_address(&text, "").map_err(de::Error::custom)
}

/// IP and port; `or` is what else could have been written.
fn parse_address(text: &str, or: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => Cow::Owned(format!("127.0.0.1:{port}")),
        None => Cow::Borrowed(text),
    };
    numeric.parse().map_err(|_| {
        let or_all =
            if text.starts_with(':') { " or, for every interface, \"0.0.0.0:8080\"" } else { "" };
        format!(
            "`{text}` is not an address to listen on: write IP and port, like \
             \"127.0.0.1:8080\"{or_all}{or}"
        )
    })
}
