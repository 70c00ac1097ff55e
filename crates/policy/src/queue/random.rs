//! Random scripts against a queue written the slow and obvious way.

use super::*;
use std::collections::HashMap;

/// A seeded stream of numbers below a bound.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// All that waits in one list, searched for every question.
#[derive(Default)]
struct Naive {
    calls: Vec<(u64, Entry, Instant)>,
    class_tags: HashMap<Priority, u64>,
    class_tag: u64,
    tenant_tags: HashMap<(Priority, Arc<str>, bool), (u64, u64)>,
    line_tags: HashMap<Priority, u64>,
    turn: u64,
}

impl Naive {
    fn push(&mut self, now: Instant, entry: &Entry, item: u64) {
        if !self.calls.iter().any(|(_, other, _)| other.class == entry.class) {
            let tag = self.class_tags.entry(entry.class).or_default();
            *tag = self.class_tag.max(*tag);
        }
        let key = key(entry);
        if !self.calls.iter().any(|(_, other, _)| self::key(other) == key) {
            let line = *self.line_tags.entry(entry.class).or_default();
            self.turn += 1;
            let tag = self.tenant_tags.entry(key).or_default();
            *tag = (tag.0.max(line), self.turn);
        }
        self.calls.push((item, entry.clone(), now));
    }

    fn pop(&mut self, now: Instant, weights: Weights) -> Option<u64> {
        let class = self.calls.iter().map(|(_, entry, _)| entry.class);
        let class = class.min_by_key(|class| (self.class_tags[class], *class))?;
        let of_class = self.calls.iter().filter(|(_, entry, _)| entry.class == class);
        // The first of equals is the oldest.
        let (item, entry, pushed) =
            of_class.min_by_key(|(_, entry, _)| self.tenant_tags[&key(entry)])?.clone();
        let aged = now >= pushed + (entry.deadline - pushed) / 2;
        let weight = weights.of(if aged { above(class) } else { class });
        let tag = self.class_tags.entry(class).or_default();
        self.class_tag = self.class_tag.max(*tag);
        *tag += charge(entry.cost, weight);
        self.turn += 1;
        let tenant = self.tenant_tags.entry(key(&entry)).or_default();
        let line = self.line_tags.entry(class).or_default();
        *line = (*line).max(tenant.0);
        *tenant = (tenant.0 + charge(entry.cost, entry.weight), self.turn);
        self.take_out(item);
        Some(item)
    }

    fn take_out(&mut self, item: u64) {
        let at = self.calls.iter().position(|(other, _, _)| *other == item).unwrap();
        let (_, entry, _) = self.calls.remove(at);
        if !self.calls.iter().any(|(_, other, _)| other.class == entry.class) {
            self.line_tags.remove(&entry.class);
            self.tenant_tags.retain(|(class, _, _), _| *class != entry.class);
        }
        if self.calls.is_empty() {
            self.class_tags.clear();
            self.class_tag = 0;
        }
    }
}

fn key(entry: &Entry) -> (Priority, Arc<str>, bool) {
    (entry.class, entry.tenant.clone(), entry.patient)
}

fn entry(chance: &mut Chance, now: Instant) -> Entry {
    let left = Duration::from_millis(1 + chance.below(4000));
    Entry {
        class: CLASSES[chance.below(3) as usize],
        tenant: format!("t{}", chance.below(5)).into(),
        cost: 1 + chance.below(500),
        weight: 1 + chance.below(3) as u32,
        deadline: now + left,
        service: Duration::from_millis(chance.below(300)),
        patient: chance.below(4) == 0,
    }
}

/// Calls in the queue by number, with what is needed to judge how they leave.
#[derive(Default)]
struct Ledger {
    inside: HashMap<u64, (Entry, Ticket)>,
    out: u64,
}

impl Ledger {
    #[track_caller]
    fn leave(&mut self, item: u64) -> Entry {
        self.out += 1;
        self.inside.remove(&item).expect("each call leaves once").0
    }

    #[track_caller]
    fn lose(&mut self, now: Instant, lost: &mut Vec<Lost<u64>>) -> Vec<u64> {
        let mut items = Vec::new();
        for Lost { item, class, why } in lost.drain(..) {
            let entry = self.leave(item);
            assert_eq!(class, entry.class);
            match why {
                Why::Expired => assert!(now + entry.service >= entry.deadline),
                Why::Overloaded | Why::Displaced => assert!(!entry.patient),
            }
            items.push(item);
        }
        items
    }
}

/// Plays `steps` random steps; with a line that never overloads the order must be the naive one.
fn play(seed: u64, options: Options, steps: u32) {
    let mut chance = Chance(seed);
    let exact = options.interval >= Duration::from_secs(1000);
    let (mut queue, mut naive) = (Queue::new(options.clone()), Naive::default());
    let (mut ledger, mut lost) = (Ledger::default(), Vec::new());
    let mut now = Instant::now();
    let mut pushed = 0;
    // Phases of growing and of draining, so that full and empty are both met.
    for step in 0..steps {
        let push_bias = if (step / 200) % 2 == 0 { 6 } else { 3 };
        now += Duration::from_millis(chance.below(20));
        let served = match chance.below(10) {
            roll if roll < push_bias => {
                let (entry, item) = (entry(&mut chance, now), pushed);
                match queue.push(now, entry.clone(), item, &mut lost) {
                    Ok(ticket) => {
                        pushed += 1;
                        // Lost first: those left before it came.
                        ledger.lose(now, &mut lost).into_iter().for_each(|n| naive.take_out(n));
                        naive.push(now, &entry, item);
                        ledger.inside.insert(item, (entry, ticket));
                    }
                    Err(Full(back)) => assert_eq!(back, item),
                }
                None
            }
            9 if !ledger.inside.is_empty() => {
                let mut items: Vec<_> = ledger.inside.keys().copied().collect();
                items.sort_unstable();
                let item = items[chance.below(items.len() as u64) as usize];
                let (_, ticket) = ledger.inside[&item];
                assert_eq!(queue.remove(ticket), Some(item));
                assert_eq!(queue.remove(ticket), None);
                ledger.leave(item);
                naive.take_out(item);
                None
            }
            _ => queue.pop(now, Priority::Bulk, &mut lost),
        };
        ledger.lose(now, &mut lost).into_iter().for_each(|item| naive.take_out(item));
        if let Some(item) = served {
            let entry = ledger.leave(item);
            assert!(now < entry.deadline, "seed {seed}: sent too late");
            if exact {
                assert_eq!(naive.pop(now, options.weights), Some(item), "seed {seed} step {step}");
            } else {
                check_order(&naive, &entry, item);
                naive.take_out(item);
            }
        }
        check_counts(&queue, &ledger, &options);
    }
    while let Some(item) = queue.pop(now, Priority::Bulk, &mut lost) {
        ledger.leave(item);
    }
    ledger.lose(now, &mut lost);
    assert!(ledger.inside.is_empty() && queue.is_empty() && queue.next_expiry().is_none());
    assert_eq!(ledger.out, pushed, "seed {seed}: every call leaves exactly once");
    assert_eq!((queue.tag, queue.delay(now), queue.pressure(now)), (0, Duration::ZERO, 0.0));
}

/// A tenant's call leaves from an end of his list, a patient one from the old end.
#[track_caller]
fn check_order(naive: &Naive, entry: &Entry, item: u64) {
    let mut own = naive.calls.iter().filter(|(_, other, _)| key(other) == key(entry));
    let oldest = own.next().unwrap().0;
    let newest = own.next_back().map_or(oldest, |(item, _, _)| *item);
    assert!(item == oldest || (item == newest && !entry.patient));
}

#[track_caller]
fn check_counts(queue: &Queue<u64>, ledger: &Ledger, options: &Options) {
    assert_eq!(queue.len(), ledger.inside.len());
    let of = |patient| ledger.inside.values().filter(|(e, _)| e.patient == patient).count();
    assert!(of(false) <= options.max_waiting as usize);
    assert!(of(true) <= options.max_patient as usize);
    for class in CLASSES {
        let own = ledger.inside.values().filter(|(entry, _)| entry.class == class).count();
        assert_eq!(queue.len_of(class), own);
    }
}

#[test]
fn nothing_is_lost_and_nothing_leaves_twice() {
    for seed in 0..60 {
        let options = Options {
            max_waiting: [2, 20, 1000][seed as usize % 3],
            max_patient: 30,
            interval: Duration::from_millis([10, 100][seed as usize % 2]),
            ..Options::default()
        };
        play(seed, options, 2000);
    }
}

#[test]
fn the_order_is_the_one_of_the_slow_and_obvious_queue() {
    for seed in 100..160 {
        let options = Options {
            max_waiting: 40,
            interval: Duration::from_secs(1_000_000),
            ..Options::default()
        };
        play(seed, options, 2000);
    }
}
