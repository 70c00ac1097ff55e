//! Content codings: which there are, and which of them suits both sides (RFC 9110 §8.4, §12.5.3).

use hyper::{
    HeaderMap,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue},
};

/// A way to compress a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

/// What a caller wants of the answer's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// As it is.
    Plain,
    /// Compressed where it is worth it.
    May(Coding),
    /// Compressed: it refuses anything else.
    Must(Coding),
}

/// A request's body is in a coding that is not taken, or in several on top of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotTaken;

impl Coding {
    /// Ours to choose among where the caller likes several equally, so the cheapest first: at the
    /// levels used here zstd packs tighter than the others in half of their time.
    const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];
    /// All of them, as a header.
    pub(crate) const TAKEN: HeaderValue = HeaderValue::from_static("zstd, br, gzip");

    /// As `Content-Encoding` says it.
    pub(crate) const fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        })
    }

    fn named(name: &[u8]) -> Option<Self> {
        let names = [(Self::Zstd, &b"zstd"[..]), (Self::Brotli, b"br"), (Self::Gzip, b"gzip")];
        let old_name = [(Self::Gzip, &b"x-gzip"[..])];
        let mut all = names.into_iter().chain(old_name);
        all.find(|(_, its_name)| its_name.eq_ignore_ascii_case(name)).map(|(coding, _)| coding)
    }

    /// The coding of a request's body, if it has one.
    pub(crate) fn of_body(headers: &HeaderMap) -> Result<Option<Self>, NotTaken> {
        let mut found = None;
        for name in elements(headers.get_all(CONTENT_ENCODING).iter()) {
            if name.eq_ignore_ascii_case(b"identity") {
                continue;
            }
            let coding = Self::named(name).ok_or(NotTaken)?;
            if found.replace(coding).is_some() {
                return Err(NotTaken);
            }
        }
        Ok(found)
    }
}

impl Wish {
    /// What `Accept-Encoding` says. Without the header the answer stays as it is: whoever can
    /// unpack says so.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut weights = [None; Coding::ALL.len()];
        let (mut plain, mut others) = (None, None);
        for element in elements(headers.get_all(ACCEPT_ENCODING).iter()) {
            let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            // What cannot be read says nothing.
            let Some(weight) = weight(parts) else { continue };
            if name == b"*" {
                others = Some(weight);
            } else if name.eq_ignore_ascii_case(b"identity") {
                plain = Some(weight);
            } else if let Some(coding) = Coding::named(name) {
                weights[coding as usize] = Some(weight);
            }
        }
        let weighed = Coding::ALL.into_iter().map(|coding| {
            let weight = weights[coding as usize].or(others).unwrap_or(0);
            (coding, weight)
        });
        let best = weighed
            .filter(|(_, weight)| *weight > 0)
            .reduce(|best, next| if next.1 > best.1 { next } else { best });
        match (best, plain.or(others.filter(|weight| *weight == 0))) {
            (None, _) => Self::Plain,
            (Some((coding, _)), Some(0)) => Self::Must(coding),
            (Some((_, weight)), Some(plain)) if plain > weight => Self::Plain,
            (Some((coding, _)), _) => Self::May(coding),
        }
    }

    /// Whether `Accept-Encoding` could refuse an answer as it is: it takes a weight to do so.
    /// Cheaper than [`Wish::of`], for the many answers that are too short to be compressed.
    pub(crate) fn may_refuse_plain(headers: &HeaderMap) -> bool {
        headers.get_all(ACCEPT_ENCODING).iter().any(|line| line.as_bytes().contains(&b'='))
    }
}

/// The elements of a list that may be spread over several lines (RFC 9110 §5.6.1).
fn elements<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> impl Iterator<Item = &'a [u8]> {
    let split = |line: &'a HeaderValue| line.as_bytes().split(|byte| *byte == b',');
    lines.flat_map(split).map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// `q` in thousandths, 1000 where there is none; `None` when it is no number from 0 to 1 with at
/// most three decimals.
fn weight<'a>(parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let values = parameters.filter_map(|parameter| match parameter {
        [b'q' | b'Q', b'=', value @ ..] => Some(value),
        _ => None,
    });
    let Some(value) = values.last() else { return Some(1000) };
    let (whole, decimals) = match value {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut thousandths = u16::from(whole - b'0') * 1000;
    for (digit, worth) in decimals.iter().zip([100, 10, 1]) {
        thousandths += u16::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?) * worth;
    }
    (thousandths <= 1000).then_some(thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderName;

    fn headers(name: HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), line.parse().unwrap())).collect()
    }

    #[test]
    fn the_best_coding_both_sides_know_is_chosen() {
        use Coding::{Brotli, Gzip, Zstd};
        use Wish::{May, Must, Plain};
        for (lines, expected) in [
            (&[][..], Plain),
            (&[""], Plain),
            (&["identity"], Plain),
            (&["deflate, compress"], Plain),
            (&["gzip"], May(Gzip)),
            (&["X-GZIP"], May(Gzip)),
            (&["gzip, deflate, br"], May(Brotli)),
            (&["gzip, deflate, br, zstd"], May(Zstd)),
            (&["gzip,deflate", "br"], May(Brotli)),
            (&["*"], May(Zstd)),
            (&["zstd;q=0, *"], May(Brotli)),
            (&["gzip;q=1.0, br;q=0.9, zstd; q=0.899"], May(Gzip)),
            (&["gzip;q=0.5, br;q=0.5"], May(Brotli)),
            (&["gzip;q=0"], Plain),
            (&["br;q=0.000, gzip;Q=0.001"], May(Gzip)),
            (&["identity, gzip;q=0.5"], Plain),
            (&["identity;q=0.5, gzip"], May(Gzip)),
            (&["identity;q=1, gzip"], May(Gzip)),
            (&["gzip, identity;q=0"], Must(Gzip)),
            (&["br, *;q=0"], Must(Brotli)),
            (&["br, *;q=0, identity;q=0.1"], May(Brotli)),
            // Nobody could answer these, so they get what there is.
            (&["identity;q=0"], Plain),
            (&["*;q=0"], Plain),
            // What cannot be read says nothing.
            (&["gzip;q=2, br;q=0.1234, zstd;q=, *;q=x"], Plain),
            (&["gzip;q=1.001, br;q=-1"], Plain),
            (&["gzip;level=9;q=0.3"], May(Gzip)),
            (&[",, ,gzip,"], May(Gzip)),
        ] {
            let headers = headers(ACCEPT_ENCODING, lines);
            assert_eq!(Wish::of(&headers), expected, "{lines:?}");
            assert!(Wish::may_refuse_plain(&headers) || !matches!(expected, Must(_)), "{lines:?}");
        }
    }

    #[test]
    fn a_body_has_at_most_one_coding() {
        for (lines, expected) in [
            (&[][..], Ok(None)),
            (&[""], Ok(None)),
            (&["identity"], Ok(None)),
            (&["gzip"], Ok(Some(Coding::Gzip))),
            (&["x-gzip"], Ok(Some(Coding::Gzip))),
            (&["BR"], Ok(Some(Coding::Brotli))),
            (&["identity, zstd"], Ok(Some(Coding::Zstd))),
            (&["deflate"], Err(NotTaken)),
            (&["gzip, gzip"], Err(NotTaken)),
            (&["gzip", "br"], Err(NotTaken)),
            (&["gzip;q=1"], Err(NotTaken)),
        ] {
            assert_eq!(Coding::of_body(&headers(CONTENT_ENCODING, lines)), expected, "{lines:?}");
        }
    }
}
