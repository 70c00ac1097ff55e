//! A server of twenty slots in virtual time, and what callers see of it through the queue.

use super::*;
use std::{cmp::Reverse, collections::BinaryHeap};

const SLOTS: usize = 20;
/// Time simulated; what came in in the first second does not count.
const RUN: f64 = 15.0;
const WARM_UP: f64 = 1.0;

/// Calls that come in at random (Poisson) times.
#[derive(Clone)]
struct Callers {
    class: Priority,
    tenants: u32,
    per_second: f64,
    within: f64,
    patient: bool,
}

/// What became of one stream of callers, in seconds.
#[derive(Default)]
struct Outcome {
    came: usize,
    /// From push to the end of service.
    latencies: Vec<f64>,
    in_time: usize,
    refused_after: Vec<f64>,
}

impl Outcome {
    fn p99(&mut self) -> f64 {
        percentile(&mut self.latencies, 0.99)
    }

    fn good_per_second(&self) -> f64 {
        self.in_time as f64 / (RUN - WARM_UP)
    }
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}

/// A seeded stream of numbers in `[0, 1)` (Knuth's MMIX constants).
struct Chance(u64);

impl Chance {
    fn roll(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Runs the server with a service time of `service` seconds, give or take a tenth.
fn run(streams: &[Callers], service: f64) -> Vec<Outcome> {
    let (start, mut chance) = (Instant::now(), Chance(7));
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut queue = Queue::new(Options::default());
    let mut outcomes: Vec<Outcome> = streams.iter().map(|_| Outcome::default()).collect();
    // When each stream's next call comes, and (in nanoseconds) when the busy slots are free.
    let mut coming: Vec<f64> = streams.iter().map(|_| 0.0).collect();
    let mut busy = BinaryHeap::new();
    let mut lost = Vec::new();
    loop {
        let next = (0..streams.len()).min_by(|a, b| coming[*a].total_cmp(&coming[*b])).unwrap();
        let freed = busy.peek().map(|Reverse(nanos): &Reverse<u64>| *nanos as f64 / 1e9);
        let now = freed.unwrap_or(f64::MAX).min(coming[next]);
        if now > RUN {
            return outcomes;
        }
        if freed == Some(now) {
            busy.pop();
        } else {
            let callers = &streams[next];
            coming[next] -= (1.0 - chance.roll()).ln() / callers.per_second;
            let entry = Entry {
                class: callers.class,
                tenant: format!("{next}-{}", (chance.roll() * f64::from(callers.tenants)) as u32)
                    .into(),
                cost: 100,
                weight: 1,
                deadline: at(now + callers.within),
                service: Duration::from_secs_f64(service),
                patient: callers.patient,
            };
            outcomes[next].came += usize::from(now >= WARM_UP);
            // A full line of patient calls leaves it to their caller to wait.
            let _ = queue.push(at(now), entry, (next, now), &mut lost);
        }
        while busy.len() < SLOTS
            && let Some((stream, came)) = queue.pop(at(now), Priority::Bulk, &mut lost)
        {
            let done = now + service * (0.9 + 0.2 * chance.roll());
            busy.push(Reverse((done * 1e9) as u64));
            if came >= WARM_UP {
                outcomes[stream].latencies.push(done - came);
            }
            if now >= WARM_UP {
                let in_time = done - came <= streams[stream].within;
                outcomes[stream].in_time += usize::from(in_time);
            }
        }
        for Lost { item: (stream, came), .. } in lost.drain(..) {
            if came >= WARM_UP {
                outcomes[stream].refused_after.push(now - came);
            }
        }
    }
}

/// Callers at `load` times what the server can do at `service` seconds per call.
fn callers(class: Priority, load: f64, service: f64, tenants: u32) -> Callers {
    let per_second = load * SLOTS as f64 / service;
    Callers { class, tenants, per_second, within: service * 20.0, patient: false }
}

/// Goodput over what could be served, and the 99th percentile of the served over the unloaded one.
#[track_caller]
fn check_overload(load: f64, service: f64, tenants: u32, goodput: f64, p99: f64) -> Outcome {
    let of = |load| run(&[callers(Priority::Default, load, service, tenants)], service).remove(0);
    let (mut unloaded, mut outcome) = (of(0.1), of(load));
    let came_per_second = outcome.came as f64 / (RUN - WARM_UP);
    let could = came_per_second.min(SLOTS as f64 / service);
    let good = outcome.good_per_second() / could;
    let slower = outcome.p99() / unloaded.p99();
    assert!(good >= goodput, "goodput {good:.3}");
    assert!(slower <= p99, "p99 x{slower:.3}");
    outcome
}

#[test]
fn at_five_times_capacity_the_served_are_served_well() {
    for tenants in [1, 20, 100_000] {
        let mut outcome = check_overload(5.0, 0.05, tenants, 0.95, 1.5);
        let refused = percentile(&mut outcome.refused_after, 0.99);
        assert!(refused <= 0.020, "refused after {refused:.4} s");
    }
}

#[test]
fn slow_calls_are_served_as_well() {
    check_overload(5.0, 1.0, 20, 0.9, 1.5);
}

#[test]
fn a_little_overload_costs_little() {
    check_overload(1.2, 0.05, 20, 0.9, 1.5);
    check_overload(1.05, 0.05, 20, 0.9, 1.5);
    check_overload(0.9, 0.05, 20, 0.95, 1.5);
    check_overload(0.7, 0.05, 20, 0.999, 1.2);
}

/// The 99th percentile of an interactive load of 0.3, beside `bulk`, over the one alone.
#[track_caller]
fn check_beside(bulk: Callers, bulk_share: f64) {
    let interactive = callers(Priority::Interactive, 0.3, 0.05, 20);
    let alone = run(std::slice::from_ref(&interactive), 0.05).remove(0).p99();
    let mut both = run(&[interactive, bulk], 0.05);
    let slower = both[0].p99() / alone;
    let share = both[1].good_per_second() / 400.0;
    assert!(slower <= 1.2, "interactive p99 x{slower:.3}");
    assert!(both[0].refused_after.is_empty(), "interactive calls were refused");
    assert!(share >= bulk_share, "bulk got {share:.3}");
}

#[test]
fn bulk_at_ten_times_does_not_slow_interactive() {
    let bulk = callers(Priority::Bulk, 10.0, 0.05, 3);
    check_beside(bulk.clone(), 0.6);
    let rows = Callers { patient: true, within: 86_400.0, ..bulk };
    check_beside(rows, 0.6);
}

#[test]
fn bulk_gets_its_tenth_of_an_interactive_overload() {
    for load in [1.0, 10.0] {
        let interactive = callers(Priority::Interactive, 5.0, 0.05, 20);
        let outcomes = run(&[interactive, callers(Priority::Bulk, load, 0.05, 3)], 0.05);
        let share = outcomes[1].good_per_second() / 400.0;
        assert!(share >= 0.1, "bulk got {share:.3}");
        let all = share + outcomes[0].good_per_second() / 400.0;
        assert!(all >= 0.95, "goodput {all:.3}");
    }
}

#[test]
fn one_noisy_tenant_does_not_move_the_other_nineteen() {
    let quiet = callers(Priority::Default, 0.3, 0.05, 19);
    let alone = run(std::slice::from_ref(&quiet), 0.05).remove(0).p99();
    for load in [2.0, 10.0] {
        let noisy = callers(Priority::Default, load, 0.05, 1);
        let mut both = run(&[quiet.clone(), noisy], 0.05);
        let slower = both[0].p99() / alone;
        // A slot is free every 2.5 ms on average, and nobody is interrupted.
        assert!(slower <= 1.25, "the others' p99 x{slower:.3}");
        let refused = both[0].refused_after.len() as f64 / both[0].latencies.len() as f64;
        assert!(refused <= 0.005, "{refused:.4} of the others refused");
        assert!(both[1].good_per_second() >= 0.65 * 400.0);
    }
}
