//! Undoes the compression of a request's body, with its bounds.
//!
//! *Why bounds here:* a kibibyte of gzip can stand for a mebibyte, of brotli for far more. A body
//! may be as long unpacked as it may be as sent, and no longer; it is unpacked in steps, between
//! which others get their turn.

use crate::coding::Coding;
use async_compression::{
    tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder},
    zstd::DParameter,
};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    task::coop::consume_budget,
};

/// Unpacked at a time.
const STEP_BYTES: usize = 16 << 10;
/// 8 MiB, the largest window zstd may ask a receiver for (RFC 9659). Brotli's largest is 16 MiB.
const WINDOW_LOG: u32 = 23;

/// Why a body cannot be unpacked.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// There is more of it than allowed.
    TooLong,
    /// It is not what it is said to be, is cut off, or goes on after its end.
    Damaged(io::Error),
}

/// The body that `packed` stands for, at most `limit` bytes of it.
pub(crate) async fn decompress(
    packed: &[u8],
    coding: Coding,
    limit: usize,
) -> Result<Bytes, Unusable> {
    let mut rest = packed;
    let mut decoder: Box<dyn AsyncRead + Send + Unpin> = match coding {
        Coding::Zstd => {
            let window = DParameter::window_log_max(WINDOW_LOG);
            Box::new(ZstdDecoder::with_params(&mut rest, &[window]))
        }
        Coding::Brotli => Box::new(BrotliDecoder::new(&mut rest)),
        Coding::Gzip => Box::new(GzipDecoder::new(&mut rest)),
    };
    let mut plain = BytesMut::with_capacity(STEP_BYTES);
    while decoder.read_buf(&mut plain).await.map_err(Unusable::Damaged)? > 0 {
        if plain.len() > limit {
            return Err(Unusable::TooLong);
        }
        plain.reserve(STEP_BYTES);
        consume_budget().await;
    }
    drop(decoder);
    if rest.is_empty() {
        Ok(plain.freeze())
    } else {
        Err(Unusable::Damaged(io::Error::other("bytes after the end")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::compress;
    use tidegate_core::Body;

    const ALL: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    /// Text of `length` bytes that does not repeat itself much.
    fn text(length: usize) -> Bytes {
        let mut seed = 7_u64;
        let mut letter = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b"etaoin shrdlu"[(seed >> 33) as usize % 13]
        };
        (0..length).map(|_| letter()).collect()
    }

    async fn packed(plain: &Bytes, coding: Coding) -> Bytes {
        compress(Body::whole(plain.clone()), coding).collect(usize::MAX).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_compressed_comes_back() {
        for coding in ALL {
            for length in [0, 1, 1000, 16 << 10, (1 << 20) + 17] {
                let plain = text(length);
                let packed = packed(&plain, coding).await;
                assert!(length < 1000 || packed.len() < length * 2 / 3, "{coding:?} {length}");
                let again = decompress(&packed, coding, length).await.unwrap();
                assert!(again == plain, "{coding:?} {length}");
                if length > 0 {
                    let one_less = decompress(&packed, coding, length - 1).await;
                    assert!(matches!(one_less, Err(Unusable::TooLong)), "{coding:?} {length}");
                }
            }
        }
    }

    #[tokio::test]
    async fn damage_is_found_wherever_it_is() {
        let plain = text(5000);
        for coding in ALL {
            let packed = packed(&plain, coding).await;
            let is_damaged = async |bytes: &[u8]| {
                matches!(decompress(bytes, coding, 1 << 20).await, Err(Unusable::Damaged(_)))
            };
            for length in 0..packed.len() {
                assert!(is_damaged(&packed[..length]).await, "{coding:?} cut at {length}");
            }
            assert!(is_damaged(&[&packed[..], b"x"].concat()).await, "{coding:?} goes on");
            assert!(is_damaged(&packed.repeat(2)).await, "{coding:?} twice");
            assert!(is_damaged(b"{\"model\":\"m\"}").await, "{coding:?} is JSON");
        }
    }

    /// What comes out is bounded, not what is asked for in between.
    #[tokio::test]
    async fn a_bomb_ends_at_the_limit() {
        let zeros = Bytes::from(vec![0; 8 << 20]);
        for coding in ALL {
            let bomb = packed(&zeros, coding).await;
            assert!(bomb.len() < 1 << 17, "{coding:?} {}", bomb.len());
            let end = decompress(&bomb, coding, 1 << 20).await;
            assert!(matches!(end, Err(Unusable::TooLong)), "{coding:?}");
        }
    }
}
