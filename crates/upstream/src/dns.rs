//! The addresses of an upstream's name, remembered for a while.
//!
//! # Why
//!
//! A lookup blocks a thread and may take seconds; a name server that is away must not take a
//! healthy upstream with it. So addresses are kept for a fixed time (the system's resolver tells
//! no better one), looked up once for all who wait, and the last good ones serve on when a new
//! lookup fails. Dials start at the next address each time, so that all of them are used.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// With last good addresses at hand, a lookup may take this long.
const PATIENCE: Duration = Duration::from_millis(500);

/// The addresses of one host and port.
pub(crate) struct Dns {
    host: Box<str>,
    port: u16,
    ttl: Duration,
    /// Held during a lookup: whoever else needs it waits for the same one.
    known: Mutex<Option<Known>>,
    turn: AtomicUsize,
}

#[derive(Clone)]
struct Known {
    addresses: Arc<[SocketAddr]>,
    fresh_until: Instant,
}

impl Dns {
    pub(crate) fn new(host: &str, port: u16, ttl: Duration) -> Self {
        Self { host: host.into(), port, ttl, known: Mutex::new(None), turn: AtomicUsize::new(0) }
    }

    /// Every address, the one whose turn it is first.
    pub(crate) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(literal) = self.host.parse::<IpAddr>() {
            return Ok(vec![(literal, self.port).into()]);
        }
        let lookup = async {
            let found = tokio::net::lookup_host((&*self.host, self.port)).await?;
            Ok(found.collect())
        };
        let addresses = self.known_or(lookup).await?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        Ok([&addresses[turn..], &addresses[..turn]].concat())
    }

    async fn known_or(
        &self,
        lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<Arc<[SocketAddr]>> {
        let mut known = self.known.lock().await;
        let last_good = match &*known {
            Some(known) if Instant::now() < known.fresh_until => {
                return Ok(known.addresses.clone());
            }
            Some(known) => Some(known.addresses.clone()),
            None => None,
        };
        let found = match last_good {
            Some(_) => tokio::time::timeout(PATIENCE, lookup)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            None => lookup.await,
        };
        let addresses = match (found, last_good) {
            (Ok(found), _) if !found.is_empty() => found.into(),
            (_, Some(last_good)) => last_good,
            (Ok(_), None) => {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
            }
            (Err(error), None) => return Err(error),
        };
        *known = Some(Known {
            addresses: Arc::clone(&addresses),
            fresh_until: Instant::now() + self.ttl,
        });
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    async fn ask(dns: &Dns, answer: io::Result<&[u8]>) -> Option<Vec<u8>> {
        let lookup = async {
            answer.map(|hosts| hosts.iter().map(|host| ([10, 0, 0, *host], 80).into()).collect())
        };
        let addresses = dns.known_or(lookup).await.ok()?;
        let last = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => unreachable!("only version 4 was answered"),
        };
        Some(addresses.iter().map(last).collect())
    }

    fn away() -> io::Result<&'static [u8]> {
        Err(io::ErrorKind::TimedOut.into())
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_believed_for_a_while() {
        let dns = Dns::new("host", 80, TTL);
        assert_eq!(ask(&dns, Ok(&[1, 2])).await, Some(vec![1, 2]));
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        assert_eq!(ask(&dns, Ok(&[3])).await, Some(vec![1, 2]));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ask(&dns, Ok(&[3])).await, Some(vec![3]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_ones_serve_on() {
        let dns = Dns::new("host", 80, TTL);
        assert_eq!(ask(&dns, away()).await, None);
        assert_eq!(ask(&dns, Ok(&[1])).await, Some(vec![1]));
        tokio::time::advance(TTL).await;
        assert_eq!(ask(&dns, away()).await, Some(vec![1]));
        tokio::time::advance(TTL).await;
        assert_eq!(ask(&dns, Ok(&[])).await, Some(vec![1]));
        tokio::time::advance(TTL).await;
        assert_eq!(
            *dns.known_or(std::future::pending()).await.unwrap(),
            [([10, 0, 0, 1], 80).into()]
        );
    }

    #[tokio::test]
    async fn literals_need_no_lookup() {
        assert_eq!(
            Dns::new("::1", 80, TTL).addresses().await.unwrap(),
            ["[::1]:80".parse().unwrap()]
        );
    }
}
