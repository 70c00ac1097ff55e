//! Where an HTTP/1.1 answer's head ends, where its body ends, and what is between.
//!
//! # Why not hyper
//!
//! A general client builds a map of headers, a channel for the body and a shared buffer per
//! answer, most of what a request cost here. A generator asks four things of a head, and looks at
//! the body where it lies in the buffer.
//!
//! Source: RFC 9112, §6.3 "Message Body Length" and §7.1 "Chunked Transfer Coding".

use std::mem::MaybeUninit;

/// Most headers of an answer.
const MAX_HEADERS: usize = 100;
/// Longest line of a chunk's size or of a trailer.
const MAX_LINE_BYTES: usize = 4096;

/// What a generator wants to know of an answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Its content type is `text/event-stream`.
    pub(crate) is_event_stream: bool,
    /// It says when to come back.
    pub(crate) has_retry_after: bool,
}

impl Head {
    /// Takes note of one header; its name in any case.
    pub(crate) fn header(&mut self, name: &str, value: &[u8]) {
        const STREAM: &[u8] = b"text/event-stream";
        if name.eq_ignore_ascii_case("content-type") {
            let kind = value.get(..STREAM.len()).unwrap_or_default();
            self.is_event_stream = kind.eq_ignore_ascii_case(STREAM);
        } else if name.eq_ignore_ascii_case("retry-after")
            || name.eq_ignore_ascii_case("retry-after-ms")
        {
            self.has_retry_after = true;
        }
    }
}

/// A head that was read whole.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) head: Head,
    /// Bytes of it.
    pub(crate) len: usize,
    pub(crate) body: Body,
    /// Whether another request may follow on the connection.
    pub(crate) keeps: bool,
}

/// Reads the head of the final answer at the start of `bytes`, past interim ones (100, 103);
/// `None` when there is not all of it yet.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Parsed>, &'static str> {
    let mut at = 0;
    loop {
        match parse_one(&bytes[at..])? {
            Some(interim) if (100..200).contains(&interim.head.status) => {
                if interim.head.status == 101 {
                    return Err("the server switched protocols");
                }
                at += interim.len;
            }
            Some(parsed) => return Ok(Some(Parsed { len: at + parsed.len, ..parsed })),
            None => return Ok(None),
        }
    }
}

fn parse_one(bytes: &[u8]) -> Result<Option<Parsed>, &'static str> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let len = match httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut room,
    ) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("the answer has over 100 headers"),
        Err(_) => return Err("the answer is not HTTP/1.1"),
    };
    let status = response.code.unwrap_or_default();
    let mut head = Head { status, is_event_stream: false, has_retry_after: false };
    let mut keeps = response.version == Some(1);
    let mut length = None;
    let mut coding = None;
    for header in response.headers.iter() {
        let (name, value) = (header.name, header.value);
        // By length first: most headers are none of these.
        match name.len() {
            10 if name.eq_ignore_ascii_case("connection") => {
                let says = |word| tokens(value).any(|token| token.eq_ignore_ascii_case(word));
                keeps = !says(b"close") && (keeps || says(b"keep-alive"));
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let told = decimal(value).ok_or("the answer's content-length is no number")?;
                if length.replace(told).is_some_and(|before| before != told) {
                    return Err("the answer has two lengths");
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                coding = tokens(value).last();
            }
            11 | 12 | 14 => head.header(name, value),
            _ => {}
        }
    }
    let body = match (status, coding, length) {
        (100..200 | 204 | 304, ..) => Body::Length(0),
        (_, Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => {
            Body::Chunked(Chunk::Size)
        }
        (_, None, Some(length)) => Body::Length(length),
        _ => Body::UntilClose,
    };
    // With both, one of the two ends was meant by somebody else (RFC 9112, §6.1).
    keeps &= body != Body::UntilClose && (coding.is_none() || length.is_none());
    Ok(Some(Parsed { head, len, body, keeps }))
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| str::from_utf8(value).ok()?.parse().ok())?
}

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// So many bytes.
    Length(u64),
    Chunked(Chunk),
    /// All until the connection ends.
    UntilClose,
}

/// What comes next of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size,
    Data(u64),
    /// The line end behind a chunk's data.
    DataEnd,
    Trailer,
    End,
}

/// What is at the start of the bytes at hand, behind `skip` bytes of framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// So many bytes of the body.
    Data { skip: usize, len: usize },
    /// Too little to tell.
    More { skip: usize },
    /// The body is complete.
    End { skip: usize },
}

impl Body {
    /// Takes what it can of `bytes`: what is skipped and what is data must not be given again.
    ///
    /// # Errors
    ///
    /// What is wrong with the framing.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<Next, &'static str> {
        let state = match self {
            Self::Length(0) => return Ok(Next::End { skip: 0 }),
            Self::Length(left) => return Ok(take(left, bytes, 0)),
            Self::UntilClose if bytes.is_empty() => return Ok(Next::More { skip: 0 }),
            Self::UntilClose => return Ok(Next::Data { skip: 0, len: bytes.len() }),
            Self::Chunked(state) => state,
        };
        let mut skip = 0;
        loop {
            let rest = &bytes[skip..];
            match state {
                Chunk::Size | Chunk::Trailer => {
                    let Some(line) = line(rest)? else { return Ok(Next::More { skip }) };
                    skip += line.len() + 1;
                    *state = match (*state, line.trim_ascii_end()) {
                        (Chunk::Trailer, []) => Chunk::End,
                        (Chunk::Trailer, _) => Chunk::Trailer,
                        (_, line) => match size(line).ok_or("a chunk's size is no number")? {
                            0 => Chunk::Trailer,
                            size => Chunk::Data(size),
                        },
                    };
                }
                Chunk::Data(0) => *state = Chunk::DataEnd,
                Chunk::Data(left) => return Ok(take(left, rest, skip)),
                Chunk::DataEnd => {
                    match rest {
                        [b'\r', b'\n', ..] => skip += 2,
                        [] | [b'\r'] => return Ok(Next::More { skip }),
                        _ => return Err("a chunk is longer than its size"),
                    }
                    *state = Chunk::Size;
                }
                Chunk::End => return Ok(Next::End { skip }),
            }
        }
    }
}

fn take(left: &mut u64, bytes: &[u8], skip: usize) -> Next {
    let len = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= len as u64;
    if len == 0 { Next::More { skip } } else { Next::Data { skip, len } }
}

/// A line without its LF, when it has one.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    match memchr::memchr(b'\n', &bytes[..bytes.len().min(MAX_LINE_BYTES)]) {
        Some(end) => Ok(Some(&bytes[..end])),
        None if bytes.len() >= MAX_LINE_BYTES => Err("a line between chunks is longer than 4 KiB"),
        None => Ok(None),
    }
}

/// The hexadecimal size before any extension.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    // A sign would be read as part of the number.
    let is_hex = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    is_hex.then(|| u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Parsed {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn bodies_end_where_the_head_says() {
        for (head, body, keeps) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n", Body::Length(12), true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n", CHUNKED, true),
            ("HTTP/1.1 200 OK\r\n\r\n", Body::UntilClose, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", Body::Length(0), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nConnection: Close\r\n\r\n", ONE, false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", ONE, false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n", ONE, true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                CHUNKED,
                false,
            ),
        ] {
            let parsed = parsed(head);
            assert_eq!((parsed.body, parsed.keeps), (body, keeps), "{head}");
            assert_eq!(parsed.len, head.len());
        }
    }

    const CHUNKED: Body = Body::Chunked(Chunk::Size);
    const ONE: Body = Body::Length(1);

    #[test]
    fn what_is_asked_of_a_head() {
        let refused = parsed("HTTP/1.1 429 Slow\r\nRetry-After: 1\r\ncontent-length: 0\r\n\r\n");
        assert!(refused.head.has_retry_after && !refused.head.is_event_stream);
        assert_eq!(refused.head.status, 429);
        let stream = "HTTP/1.1 103 E\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\
                      Content-Type: Text/Event-Stream; charset=utf-8\r\n\r\ndata";
        assert!(parsed(stream).head.is_event_stream);
        assert_eq!(parsed(stream).len, stream.len() - 4);
        for end in 0..stream.len() - 4 {
            assert!(parse(&stream.as_bytes()[..end]).unwrap().is_none(), "{end}");
        }
    }

    #[test]
    fn odd_heads_are_named() {
        for (head, says) in [
            ("SSH-2.0-x\r\n", "not HTTP"),
            ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n", "no number"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "two lengths"),
            ("HTTP/1.1 101 X\r\n\r\n", "switched"),
        ] {
            assert!(parse(head.as_bytes()).unwrap_err().contains(says), "{head}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert!(parse(many.as_bytes()).unwrap_err().contains("100"));
    }

    /// Reads a body given in two parts; its data and the bytes behind it.
    fn read(body: Body, parts: [&[u8]; 2]) -> Result<(Vec<u8>, usize), &'static str> {
        let (mut body, mut at, mut data) = (body, 0, Vec::new());
        let whole = parts.concat();
        for end in [parts[0].len(), whole.len()] {
            loop {
                match body.next(&whole[at..end])? {
                    Next::Data { skip, len } => {
                        data.extend_from_slice(&whole[at + skip..at + skip + len]);
                        at += skip + len;
                    }
                    Next::More { skip } => {
                        at += skip;
                        break;
                    }
                    Next::End { skip } => {
                        at += skip;
                        if end == whole.len() {
                            return Ok((data, whole.len() - at));
                        }
                        break;
                    }
                }
            }
        }
        Err("it goes on")
    }

    #[test]
    fn bodies_are_read_however_they_are_cut() {
        let chunks =
            b"5\r\nhello\r\n1;ext=\"a\"\r\n \r\n00a\r\nwide\nworld\r\n0\r\nx: y\r\n\r\nrest";
        for cut in 0..=chunks.len() {
            let (head, tail) = chunks.split_at(cut);
            let (data, behind) = read(CHUNKED, [head, tail]).unwrap();
            assert_eq!((&data[..], behind), (&b"hello wide\nworld"[..], 4), "cut at {cut}");
            let (data, behind) = read(Body::Length(7), [head, tail]).unwrap();
            assert_eq!((&data[..], behind), (&chunks[..7], chunks.len() - 7));
        }
        for bad in ["x\r\n", "-1\r\n", "\r\n", "1\r\nab", "fffffffffffffffff\r\n"] {
            assert!(read(CHUNKED, [bad.as_bytes(), b""]).is_err(), "{bad}");
        }
        assert!(read(CHUNKED, [&[b'0'; 5000], b""]).unwrap_err().contains("4 KiB"));
    }
}
