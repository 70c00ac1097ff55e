//! Throttle: an address that keeps sending credentials nobody has is told to wait.
//!
//! # Why
//!
//! A key has 256 random bits, so guessing one is hopeless at any rate. What a flood of wrong ones
//! costs is something else: a signature check for each token, log lines, and operators who cannot
//! see what is wrong. So an address gets some honest mistakes per minute; after that its wrong
//! credentials are answered "wait", for longer each time.
//!
//! Only wrong ones: this is asked after a credential was found wrong, never before. Many customers
//! share an address (a company's, a carrier's, a load balancer's), and one of them, broken or
//! hostile, must not lock the others out. Turned down: a lock on the key's id, which is public and
//! would let anybody lock anybody out; believing `X-Forwarded-For`, which whoever connects can
//! write.
//!
//! # States
//!
//! ```text
//!            more than `allowed` in a minute
//!   counting --------------------------------> waiting: 30 s, 1 m, 2 m ... 15 m
//!      ^                                          |
//!      +------------------------------------------+  after an hour of peace: 30 s again
//! ```
//!
//! An address is an IPv4 address or an IPv6 /64, which is what one customer has.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// What wrong credentials are counted over.
const WINDOW: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);
/// How long after a wait the next one is still longer than it.
const GRUDGE: Duration = Duration::from_secs(3600);
/// Addresses watched at once, about 1 MiB. One more shares an account with all that found no
/// room: that costs nobody a valid key.
const MAX_WATCHED: usize = 10_000;
/// However many come, those that are at peace are looked for this seldom.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What is to be said of a wrong credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// That it is wrong.
    Wrong,
    /// That no more are looked at for so long.
    Wait(Duration),
}

/// Wrong credentials by the address they came from.
#[derive(Debug)]
pub struct Throttle {
    allowed: u32,
    watched: HashMap<IpAddr, Account>,
    /// Of addresses that found no room.
    others: Option<Account>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    since: Instant,
    wrong: u32,
    waits: u32,
    /// End of the last wait.
    until: Option<Instant>,
}

impl Throttle {
    /// Every address may send `allowed` wrong credentials a minute; 0 is as many as it likes.
    pub fn new(allowed: u32) -> Self {
        Self { allowed, watched: HashMap::new(), others: None, swept: None }
    }

    /// A credential from this address was wrong.
    pub fn wrong(&mut self, now: Instant, from: IpAddr) -> Answer {
        if self.allowed == 0 {
            return Answer::Wrong;
        }
        let network = network(from);
        if !self.watched.contains_key(&network) {
            self.make_room(now);
        }
        let account = if self.watched.contains_key(&network) || self.watched.len() < MAX_WATCHED {
            self.watched.entry(network).or_insert_with(|| Account::new(now))
        } else {
            self.others.get_or_insert_with(|| Account::new(now))
        };
        account.wrong(now, self.allowed)
    }

    /// Forgets those at peace, when there is no room for one more.
    fn make_room(&mut self, now: Instant) {
        let is_soon = |swept: Instant| now.saturating_duration_since(swept) < SWEEP_EVERY;
        if self.watched.len() < MAX_WATCHED || self.swept.is_some_and(is_soon) {
            return;
        }
        self.swept = Some(now);
        self.watched.retain(|_, account| !account.is_at_peace(now));
    }
}

impl Account {
    const fn new(now: Instant) -> Self {
        Self { since: now, wrong: 0, waits: 0, until: None }
    }

    fn wrong(&mut self, now: Instant, allowed: u32) -> Answer {
        if let Some(until) = self.until.filter(|until| now < *until) {
            return Answer::Wait(until - now);
        }
        if self.is_at_peace(now) {
            *self = Self::new(now);
        }
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.since, self.wrong) = (now, 0);
        }
        self.wrong += 1;
        if self.wrong <= allowed {
            return Answer::Wrong;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.waits.min(16)).min(LONGEST_WAIT);
        *self = Self {
            since: now + wait,
            wrong: 0,
            waits: self.waits.saturating_add(1),
            until: Some(now + wait),
        };
        Answer::Wait(wait)
    }

    /// Whether forgetting it changes nothing.
    fn is_at_peace(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
            && self.until.is_none_or(|until| now >= until + GRUDGE)
    }
}

/// What one customer has: an IPv4 address, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays lines of `second address times -> answer`, each wrong credential of a line at once:
    /// the answer is that to the last.
    #[track_caller]
    fn check(allowed: u32, script: &str) {
        let start = Instant::now();
        let mut throttle = Throttle::new(allowed);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (said, expected) = line.split_once(" -> ").unwrap();
            let words: Vec<&str> = said.split_whitespace().collect();
            let now = start + Duration::from_secs(words[0].parse().unwrap());
            let address = words[1].parse().unwrap();
            let times = words[2].parse().unwrap();
            let last = (0..times).map(|_| throttle.wrong(now, address)).last().unwrap();
            let last = match last {
                Answer::Wrong => "wrong".to_owned(),
                Answer::Wait(wait) => format!("wait {}", wait.as_secs()),
            };
            assert_eq!(last, expected, "{line}");
        }
    }

    #[test]
    fn honest_mistakes_are_told() {
        check(
            10,
            "
            0   10.0.0.1 10 -> wrong
            60  10.0.0.1 10 -> wrong
            125 10.0.0.1 10 -> wrong
        ",
        );
    }

    #[test]
    fn each_wait_is_twice_the_last_up_to_a_quarter_of_an_hour() {
        check(
            10,
            "
            0    10.0.0.1 11 -> wait 30
            10   10.0.0.1 50 -> wait 20
            30   10.0.0.1 10 -> wrong
            30   10.0.0.1 1  -> wait 60
            90   10.0.0.1 11 -> wait 120
            210  10.0.0.1 11 -> wait 240
            450  10.0.0.1 11 -> wait 480
            930  10.0.0.1 11 -> wait 900
            1830 10.0.0.1 11 -> wait 900
        ",
        );
    }

    #[test]
    fn after_an_hour_of_peace_it_begins_anew() {
        check(
            10,
            "
            0    10.0.0.1 11 -> wait 30
            30   10.0.0.1 11 -> wait 60
            3600 10.0.0.1 11 -> wait 120
            7320 10.0.0.1 11 -> wait 30
        ",
        );
    }

    #[test]
    fn an_address_waits_for_itself_alone() {
        check(
            10,
            "
            0 10.0.0.1         11 -> wait 30
            0 10.0.0.2         1  -> wrong
            0 ::ffff:10.0.0.1  1  -> wait 30
            0 2001:db8::1      6  -> wrong
            0 2001:db8::2      5  -> wait 30
            0 2001:db8:0:1::1  1  -> wrong
        ",
        );
    }

    #[test]
    fn none_is_watched_where_all_are_allowed() {
        check(0, "0 10.0.0.1 1000 -> wrong");
    }

    #[test]
    fn those_that_find_no_room_share_an_account() {
        let start = Instant::now();
        let mut throttle = Throttle::new(2);
        let address = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        for number in 0..MAX_WATCHED {
            assert_eq!(throttle.wrong(start, address(number)), Answer::Wrong);
        }
        let mut others = (MAX_WATCHED..).map(|number| throttle.wrong(start, address(number)));
        let told: Vec<Answer> = others.by_ref().take(3).collect();
        assert_eq!(told, [Answer::Wrong, Answer::Wrong, Answer::Wait(FIRST_WAIT)]);
        drop(others);
        assert_eq!(throttle.watched.len(), MAX_WATCHED);
        assert_eq!(throttle.wrong(start, address(0)), Answer::Wrong, "it has its own");

        let later = start + WINDOW;
        assert_eq!(throttle.wrong(later, address(MAX_WATCHED)), Answer::Wrong);
        assert_eq!(throttle.watched.len(), 1, "those at peace make room");
    }
}
