//! What a proxy can do to connections.

use std::time::Duration;

/// What the proxy does to the connections; the default is nothing.
///
/// Delays and bandwidth apply to bytes read after the change, `accept` to connections opened
/// after it, `cut` to every connection, counted from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// What becomes of a new connection.
    pub accept: Accept,
    /// Added to every byte on its way to the upstream.
    pub delay_up: Duration,
    /// Added to every byte on its way back.
    pub delay_down: Duration,
    /// Bytes per second of each way of each connection; `None` is no limit.
    pub bandwidth: Option<u32>,
    /// Ends a connection within its bytes.
    pub cut: Option<Cut>,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// It is joined to one to the upstream.
    #[default]
    Forward,
    /// It opens, and nothing ever comes of it.
    BlackHole,
    /// It is refused: nobody listens, and the port stays ours.
    Refuse,
}

/// Ends a connection after so many bytes of one way, in the middle of whatever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The way whose bytes are counted.
    pub way: Way,
    /// Bytes that still pass; 0 cuts before the first.
    pub after_bytes: u64,
    /// How the caller sees it end.
    pub end: End,
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the caller to the upstream.
    Up,
    /// From the upstream to the caller.
    Down,
}

/// How a cut connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// RST: the caller's read fails.
    Reset,
    /// FIN: the caller reads a clean end.
    Fin,
}
