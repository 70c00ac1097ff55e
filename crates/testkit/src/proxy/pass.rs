//! One way of a connection: its bytes, as late, as slowly and as far as the faults let them.

use super::{End, Shared, Way};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Moves the bytes of one way until their end, which it passes on.
///
/// # Errors
///
/// How both ways have to end: a fault said so, or a side was reset.
pub(super) async fn pass(
    way: Way,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> Result<(), End> {
    // Bytes on the wire: each chunk with the instant it arrives. Full means back-pressure.
    let (wire, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let read = async move {
        // The reader owns the sender: when it ends, the writer passes the end on.
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            match from.read_buf(&mut chunk).await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(_) => break Err(End::Reset),
            }
            let faults = *shared.faults.borrow();
            let delay = match way {
                Way::Up => faults.delay_up,
                Way::Down => faults.delay_down,
            };
            if wire.send((Instant::now() + delay, chunk)).await.is_err() {
                break Ok(());
            }
        }
    };
    let write = async {
        let mut passed = 0;
        while let Some((due, chunk)) = arriving.recv().await {
            sleep_until(due).await;
            write_faulty(way, &chunk, &mut passed, &mut to, shared).await?;
        }
        // It fails when that side is gone already: the other way says how it went.
        let _ = to.shutdown().await;
        Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Writes one chunk, as fast and as far as the faults of now let it.
async fn write_faulty(
    way: Way,
    mut chunk: &[u8],
    passed: &mut u64,
    to: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
) -> Result<(), End> {
    while !chunk.is_empty() {
        let faults = *shared.faults.borrow();
        // A tenth of a second's worth at a time, so that a slow link trickles.
        let share = faults.bandwidth.map_or(chunk.len(), |rate| (rate as usize / 10).max(1));
        let cut = faults.cut.filter(|cut| cut.way == way);
        let left = cut.map_or(u64::MAX, |cut| cut.after_bytes.saturating_sub(*passed));
        let size = chunk.len().min(share).min(usize::try_from(left).unwrap_or(usize::MAX));
        if let (0, Some(cut)) = (size, cut) {
            return Err(cut.end);
        }
        to.write_all(&chunk[..size]).await.map_err(|_| End::Reset)?;
        *passed += size as u64;
        let count = match way {
            Way::Up => &shared.counts.up,
            Way::Down => &shared.counts.down,
        };
        count.fetch_add(size as u64, Ordering::Relaxed);
        if let Some(rate) = faults.bandwidth {
            sleep(Duration::from_secs_f64(size as f64 / f64::from(rate.max(1)))).await;
        }
        chunk = &chunk[size..];
    }
    // The last byte that may pass has passed: the end comes now, not with the next chunk.
    match shared.faults.borrow().cut {
        Some(cut) if cut.way == way && *passed >= cut.after_bytes => Err(cut.end),
        _ => Ok(()),
    }
}
