//! Shares of the traffic that targets get, counted in a small world in virtual time.

use super::*;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

const ALL: [Options; 5] = [
    Options::P2cEwma,
    Options::LeastInflight,
    Options::RoundRobin,
    Options::Weighted,
    Options::PrefixHash,
];

/// How a target behaves.
#[derive(Clone, Copy)]
enum Server {
    /// Answers after a time around this many milliseconds.
    Well(u64),
    /// Answers 500 after a millisecond.
    Fails,
    /// Never answers; the attempt is timed out after ten seconds.
    Hangs,
}

/// A model with one target per server, called at a steady rate with some noise.
struct World {
    servers: Vec<(Server, u32)>,
    per_second: u64,
    /// Different prompt prefixes.
    keys: u64,
}

impl World {
    fn of(servers: &[(Server, u32)]) -> Self {
        Self { servers: servers.to_vec(), per_second: 100, keys: 500 }
    }

    /// The share of two minutes' attempts each target got.
    fn run(&self, options: Options) -> Vec<f64> {
        let start = Instant::now();
        let mut balancer = Balancer::new(options);
        let mut ewmas = vec![Ewma::new(start); self.servers.len()];
        let mut in_flight = vec![0u32; self.servers.len()];
        let mut sent = vec![0u32; self.servers.len()];
        let mut endings = BinaryHeap::new();
        let mut chance = Chance(7);
        let attempts = 120 * self.per_second;
        for n in 0..attempts {
            let noise = chance.roll() * 1e6 / self.per_second as f64;
            let now = start + Duration::from_micros(n * 1_000_000 / self.per_second + noise as u64);
            while let Some(&Reverse((at, target, took, good))) = endings.peek()
                && at <= now
            {
                endings.pop();
                let ewma: &mut Ewma = &mut ewmas[target];
                if good {
                    ewma.record(at, took)
                } else {
                    ewma.failed(at, took)
                }
                in_flight[target] -= 1;
            }
            let candidates: Vec<_> = self
                .servers
                .iter()
                .enumerate()
                .map(|(index, (_, weight))| Candidate {
                    weight: *weight,
                    share: 1.0,
                    in_flight: in_flight[index],
                    cost: ewmas[index].cost(now),
                })
                .collect();
            let key = key("tenant", &((chance.roll() * self.keys as f64) as u64).to_be_bytes());
            let picked = balancer.pick(&candidates, key, || chance.roll(), |_| true).unwrap();
            let (took, good) = match self.servers[picked].0 {
                Server::Well(ms) => {
                    let spread = 0.5 + chance.roll();
                    (Duration::from_millis(ms).mul_f64(spread), true)
                }
                Server::Fails => (Duration::from_millis(1), false),
                Server::Hangs => (Duration::from_secs(10), false),
            };
            endings.push(Reverse((now + took, picked, took, good)));
            in_flight[picked] += 1;
            sent[picked] += 1;
        }
        sent.into_iter().map(|count| f64::from(count) / attempts as f64).collect()
    }
}

struct Chance(u64);

impl Chance {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Runs the world and checks that each target's share is within `off` of what is expected.
#[track_caller]
fn check(options: Options, servers: &[(Server, u32)], expected: &[f64], off: f64) {
    let shares = World::of(servers).run(options);
    let near = shares.iter().zip(expected).all(|(got, wanted)| (got - wanted).abs() <= off);
    assert!(near, "{options:?}: {shares:.3?} is not {expected:?}");
}

/// Checks the share of the first of three targets of one weight, the others well.
#[track_caller]
fn check_bad(options: Options, server: Server, per_second: u64, most: f64) {
    let well = (Server::Well(50), 1);
    let world = World { per_second, ..World::of(&[(server, 1), well, well]) };
    let shares = world.run(options);
    assert!(shares[0] <= most, "{options:?} at {per_second}/s: {shares:.3?}");
}

#[test]
fn fast_failures_do_not_attract_traffic() {
    for per_second in [5, 100, 1000] {
        check_bad(Options::P2cEwma, Server::Fails, per_second, 0.05);
    }
}

#[test]
fn a_slow_target_gets_little_and_a_hung_one_next_to_nothing() {
    for per_second in [5, 100, 1000] {
        check_bad(Options::P2cEwma, Server::Well(500), per_second, 0.15);
        check_bad(Options::P2cEwma, Server::Hangs, per_second, 0.05);
    }
    check_bad(Options::LeastInflight, Server::Well(500), 100, 0.15);
    check_bad(Options::LeastInflight, Server::Hangs, 100, 0.05);
}

#[test]
fn a_bad_target_of_another_weight_loses_too() {
    for server in [Server::Fails, Server::Hangs] {
        let servers = [(server, 3), (Server::Well(50), 2), (Server::Well(50), 1)];
        let shares = World::of(&servers).run(Options::P2cEwma);
        assert!(shares[0] <= 0.05, "{shares:.3?}");
    }
}

#[test]
fn weights_are_respected_by_all() {
    let well = Server::Well(50);
    for options in ALL {
        let off = if options == Options::LeastInflight { 0.08 } else { 0.05 };
        check(options, &[(well, 1), (well, 1), (well, 1)], &[1.0 / 3.0; 3], off);
        check(options, &[(well, 3), (well, 1)], &[0.75, 0.25], off);
        check(options, &[(well, 19), (well, 1)], &[0.95, 0.05], off);
        check(options, &[(well, 1), (well, 0)], &[1.0, 0.0], 0.0);
    }
}

#[test]
fn a_slow_start_thins_a_target() {
    let mut chance = Chance(3);
    for options in ALL {
        let mut balancer = Balancer::new(options);
        let full = Candidate { weight: 1, share: 1.0, in_flight: 9, cost: 0.05 };
        let fresh = Candidate { share: 0.1, in_flight: 2, ..full };
        let mut fresh_picks = 0;
        for n in 0..1000 {
            let key = key("t", &[n as u8, (n >> 8) as u8]);
            let picked = balancer.pick(&[full, fresh], key, || chance.roll(), |_| true);
            fresh_picks += u32::from(picked == Some(1));
        }
        assert!((0..=150).contains(&fresh_picks), "{options:?}: {fresh_picks}");
        let shut = Candidate { share: 0.0, ..full };
        assert_eq!(balancer.pick(&[shut, fresh], 1, || 0.0, |_| true), Some(1), "{options:?}");
    }
}

#[test]
fn only_what_is_open_is_picked() {
    let mut chance = Chance(5);
    let candidate = Candidate { weight: 1, share: 1.0, in_flight: 0, cost: 0.05 };
    for options in ALL {
        let mut balancer = Balancer::new(options);
        for key in 0..100 {
            let mut pick = |open: &dyn Fn(usize) -> bool| {
                balancer.pick(&[candidate; 3], key, || chance.roll(), open)
            };
            assert_eq!(pick(&|index| index == 2), Some(2), "{options:?}");
            assert_eq!(pick(&|_| false), None, "{options:?}");
        }
        assert_eq!(balancer.pick(&[], 0, || 0.5, |_| true), None, "{options:?}");
    }
}

#[test]
fn round_robin_is_smooth() {
    let candidate = |weight| Candidate { weight, share: 1.0, in_flight: 0, cost: 0.05 };
    let mut balancer = Balancer::new(Options::RoundRobin);
    let candidates = [candidate(5), candidate(1), candidate(1)];
    let picks: Vec<_> =
        (0..7).filter_map(|_| balancer.pick(&candidates, 0, || 0.5, |_| true)).collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn a_prefix_stays_at_its_server_as_long_as_that_has_room() {
    let mut balancer = Balancer::new(Options::PrefixHash);
    let mut candidates = [Candidate { weight: 1, share: 1.0, in_flight: 0, cost: 0.05 }; 4];
    let mut home =
        |candidates: &[Candidate], key| balancer.pick(candidates, key, || 0.5, |_| true).unwrap();
    let homes: Vec<_> =
        (0..1000).map(|n| home(&candidates, key("t", &u64::to_be_bytes(n)))).collect();
    // A target that goes takes only its own keys along.
    candidates[3].share = 0.0;
    for (n, before) in homes.iter().enumerate() {
        let after = home(&candidates, key("t", &(n as u64).to_be_bytes()));
        assert!(after == *before || *before == 3, "{n}: {before} -> {after}");
    }
    // One popular prefix is bounded to a quarter more than a fair part.
    candidates[3].share = 1.0;
    for _ in 0..100 {
        let picked = home(&candidates, key("t", b"popular"));
        candidates[picked].in_flight += 1;
    }
    let most = candidates.iter().map(|candidate| candidate.in_flight).max().unwrap();
    assert!((25..=32).contains(&most), "{most}");
}

#[test]
fn options_read_as_written() {
    let written =
        ALL.map(|options| serde_json::to_value(options).unwrap().as_str().unwrap().to_owned());
    let expected = ["p2c-ewma", "least-inflight", "round-robin", "weighted", "prefix-hash"];
    assert_eq!(written, expected);
    assert!(serde_json::from_str::<Options>("\"random\"").is_err());
}
