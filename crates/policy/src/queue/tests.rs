//! Scripts: who leaves the line, in which order, and why.

use super::*;

/// Plays a script against one queue. Lines are
///
/// ```text
/// <ms> push <name> <class> <tenant> [cost=<n>] [weight=<n>] [within=<ms>] [takes=<ms>] [patient]
/// <ms> full <name> …           as push, but refused
/// <ms> pop <name>…             served in this order; `-` is nobody
/// <ms> gone <name>             its caller went away
/// <ms> lost <name>:<why>…      all that left unserved since the last such line
/// <ms> delay <ms> <pressure>
/// ```
///
/// `within` is 60,000 if not given. What is lost has to be asked for before the end.
#[track_caller]
fn check(options: Options, script: &str) {
    let (mut queue, start) = (Queue::new(options), Instant::now());
    let (mut lost, mut tickets) = (Vec::new(), Vec::new());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let now = start + Duration::from_millis(words[0].parse().unwrap());
        match words[1] {
            "push" | "full" => {
                let pushed = queue.push(now, entry(now, &words), words[2].to_owned(), &mut lost);
                assert_eq!(pushed.is_ok(), words[1] == "push", "at: {line}");
                tickets.extend(pushed.ok().map(|ticket| (words[2].to_owned(), ticket)));
            }
            "pop" => {
                let served = words[2..].iter().map(|_| queue.pop(now, Priority::Bulk, &mut lost));
                let served: Vec<_> = served.map(|name| name.unwrap_or("-".to_owned())).collect();
                assert_eq!(served, words[2..], "at: {line}");
            }
            "gone" => {
                let (_, ticket) = tickets.iter().find(|(name, _)| name == words[2]).unwrap();
                assert_eq!(queue.remove(*ticket).as_deref(), Some(words[2]), "at: {line}");
                assert_eq!(queue.remove(*ticket), None, "at: {line}");
            }
            "lost" => {
                queue.expire(now, &mut lost);
                let lost = lost.drain(..).map(|lost| format!("{}:{:?}", lost.item, lost.why));
                assert_eq!(lost.collect::<Vec<_>>(), words[2..], "at: {line}");
            }
            "delay" => {
                assert_eq!(queue.delay(now).as_millis().to_string(), words[2], "at: {line}");
                assert_eq!(format!("{:.1}", queue.pressure(now)), words[3], "at: {line}");
            }
            word => panic!("`{word}`?"),
        }
    }
    assert_eq!(lost, [], "left at the end");
}

fn entry(now: Instant, words: &[&str]) -> Entry {
    let number = |name: &str| {
        let word = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.map(|number| number.parse::<u64>().unwrap())
    };
    let class = CLASSES.into_iter().find(|class| class.name() == words[3]).unwrap();
    Entry {
        class,
        tenant: words[4].into(),
        cost: number("cost").unwrap_or(100),
        weight: number("weight").unwrap_or(1) as u32,
        deadline: now + Duration::from_millis(number("within").unwrap_or(60_000)),
        service: Duration::from_millis(number("takes").unwrap_or(0)),
        patient: words.contains(&"patient"),
    }
}

/// `push` lines at 0 ms for calls `<prefix>1`, `<prefix>2`, ….
fn burst(prefix: &str, count: u32, rest: &str) -> String {
    (1..=count).map(|n| format!("0 push {prefix}{n} {rest}\n")).collect()
}

fn pops(at: u32, names: impl IntoIterator<Item = String>) -> String {
    format!("{at} pop {}\n", names.into_iter().collect::<Vec<_>>().join(" "))
}

#[test]
fn one_tenant_is_served_in_order() {
    check(
        Options::default(),
        "
        0 pop -
        0 push a default t
        0 push b default t cost=9000
        1 push c default t
        1 gone b
        2 pop a c -
        3 push d default t
        3 pop d -
        ",
    );
}

#[test]
fn classes_share_by_weight() {
    let pushes =
        burst("i", 14, "interactive t") + &burst("d", 4, "default t") + &burst("b", 4, "bulk t");
    // The nth call of a class starts at (n - 1)/weight, here times 1400; ties go to the higher.
    let mut starts: Vec<(u32, &str, u32)> = Vec::new();
    starts.extend((0..14).map(|n| (n * 20, "1i", n + 1)));
    starts.extend((0..4).map(|n| (n * 70, "2d", n + 1)));
    starts.extend((0..4).map(|n| (n * 140, "3b", n + 1)));
    starts.sort_unstable();
    let order = starts.into_iter().map(|(_, class, n)| format!("{}{n}", &class[1..]));
    check(Options::default(), &(pushes + &pops(0, order)));
}

#[test]
fn a_thousand_calls_of_one_do_not_delay_another() {
    let script = burst("n", 1000, "default noisy")
        + "0 pop n1 n2
           1 push a default quiet
           1 push b default other
           1 pop a b n3
           2 push c default quiet
           2 pop c n4";
    check(Options::default(), &script);
}

#[test]
fn a_tenant_pays_for_what_he_takes() {
    check(
        Options::default(),
        "
        0 push a1 default a cost=300
        0 push a2 default a cost=300
        0 push b1 default b cost=100
        0 push b2 default b cost=100
        0 push b3 default b cost=100
        0 push b4 default b cost=100
        0 push c1 default c cost=300 weight=3
        0 push c2 default c cost=300 weight=3
        0 pop a1 b1 c1 b2 c2 b3 a2 b4 -
        ",
    );
}

#[test]
fn absence_is_not_saved_up() {
    let script = burst("a", 20, "default a")
        + &pops(0, (1..=10).map(|n| format!("a{n}")))
        + "0 push b1 default b
           0 push b2 default b
           0 push b3 default b
           0 pop b1 a11 b2 a12 b3 a13";
    check(Options::default(), &script);
}

#[test]
fn a_call_past_half_its_time_counts_as_of_the_class_above() {
    // Bulk at the weight of default: two of them for seven interactive, not one.
    let fresh = burst("i", 20, "interactive t patient") + &burst("b", 9, "bulk t patient");
    let script =
        fresh.clone() + "0 pop i1 b1 i2 i3 i4 i5 i6 i7 i8 b2 i9 i10 i11 i12 i13 i14 i15 b3";
    check(Options::default(), &script);
    let script = fresh.replace("patient", "patient within=1000")
        + "600 pop i1 b1 i2 i3 i4 b2 i5 i6 i7 i8 b3 i9 i10 i11 b4 i12";
    check(Options::default(), &script);
}

#[test]
fn what_cannot_make_it_is_not_sent() {
    check(
        Options::default(),
        "
        0    push a default t within=1000 takes=200
        0    push b default t within=1000
        0    push c default u within=5000 takes=200
        799  lost
        800  pop b
        800  lost a:Expired
        4800 pop -
        4800 lost c:Expired
        ",
    );
}

#[test]
fn an_estimate_over_the_whole_deadline_is_not_believed() {
    check(
        Options::default(),
        "
        0   push a default t within=100 takes=500
        99  pop a
        100 push b default t within=100 takes=500
        200 lost b:Expired
        ",
    );
}

#[test]
fn a_standing_line_turns_round_and_sheds_its_old_end() {
    check(
        Options::default(),
        "
        0   push a default t within=100000 takes=40
        0   push b default t within=100000 takes=40
        0   push c default t within=100000 takes=40
        0   push d default t within=100000 takes=40
        0   push e default t within=100000 takes=40
        0   push f default t within=100000 takes=40
        100 push g default t within=100000 takes=40
        109 pop a
        110 delay 110 11.0
        111 pop g
        112 push h default t within=100000 takes=40
        112 lost b:Overloaded c:Overloaded
        113 pop h f
        114 push i default t within=100000 takes=40
        114 lost d:Overloaded
        115 pop i
        116 delay 116 11.6
        117 pop e -
        118 delay 0 0.0
        120 push j default t within=100000 takes=40
        125 push k default t within=100000 takes=40
        125 pop k j
        230 push l default t within=100000 takes=40
        235 push m default t within=100000 takes=40
        235 pop l m
        ",
    );
}

#[test]
fn a_burst_that_nobody_follows_is_served_whole() {
    let script = burst("a", 9, "default t")
        + "900 delay 900 3.6\n900 pop a9 a8\n"
        + &pops(5000, (1..=7).rev().map(|n| format!("a{n}")));
    check(Options::default(), &script);
}

#[test]
fn one_good_moment_is_enough() {
    let script: String = (0..40)
        .map(|n| {
            let (at, half) = (n * 50, n * 50 + 20);
            format!(
                "{at} push a{n} default t takes=100\n{half} push b{n} default t takes=100\n\
                 {} pop a{n} b{n}\n",
                at + 49
            )
        })
        .collect();
    check(Options::default(), &script);
}

#[test]
fn patient_calls_are_never_shed_and_hold_nobody_up() {
    let script = burst("p", 50, "bulk t patient")
        + "5000 push a bulk t
           5000 push b bulk t
           5000 delay 0 0.0
           5000 pop p1 a p2 b p3
           9000 push c bulk t
           9000 lost
           59999 pop c p4 p5";
    check(Options::default(), &script);
    check(
        Options { max_patient: 1, ..Options::default() },
        "0 push a bulk t patient\n0 full b default t patient\n0 push c bulk t\n0 pop a c -",
    );
}

#[test]
fn a_full_line_takes_back_borrowed_places_lowest_class_first() {
    let ten = Options { max_waiting: 10, ..Options::default() };
    let script = burst("b", 10, "bulk t")
        + "0 push d1 default t
           0 push i1 interactive t
           0 lost b1:Displaced b2:Displaced
           0 push b11 bulk t
           0 lost b3:Displaced
           0 push i2 interactive t
           0 push i3 interactive t
           0 push i4 interactive t
           0 push i5 interactive t
           0 push i6 interactive t
           0 push d2 default t
           0 push i7 interactive t
           0 lost b4:Displaced b5:Displaced b6:Displaced b7:Displaced b8:Displaced b9:Displaced b10:Displaced
           0 push i8 interactive t
           0 push d3 default t
           0 push b12 bulk t
           0 lost i1:Displaced d1:Displaced b11:Displaced";
    check(ten, &script);
}

#[test]
fn a_full_line_takes_from_the_tenant_with_the_most() {
    let four = Options { max_waiting: 4, ..Options::default() };
    check(
        four,
        "
        0 push q1 default quiet
        0 push n1 default noisy
        0 push n2 default noisy
        0 push n3 default noisy
        0 push n4 default noisy
        0 lost n1:Displaced
        0 push q2 default quiet
        0 lost n2:Displaced
        0 push r1 default third
        0 push s1 default fourth
        0 lost n3:Displaced q1:Displaced
        0 push u1 default fifth
        0 lost n4:Displaced
        ",
    );
}

#[test]
fn no_places_at_all_refuse() {
    check(Options { max_waiting: 0, ..Options::default() }, "0 full a interactive t\n0 pop -");
}

#[test]
fn tags_of_the_absent_are_bounded_and_forgotten() {
    let (mut queue, now, mut lost) = (Queue::new(Options::default()), Instant::now(), Vec::new());
    let entry = |tenant: usize| Entry {
        tenant: format!("t{tenant}").into(),
        ..entry(now, &["0", "push", "x", "default", "t"])
    };
    queue.push(now, entry(0), 0, &mut lost).unwrap();
    for tenant in 1..10_000 {
        queue.push(now, entry(tenant), tenant, &mut lost).unwrap();
        queue.pop(now, Priority::Bulk, &mut lost).unwrap();
    }
    let line = &queue.lines[Priority::Default as usize];
    assert!(line.remembered() <= 4097, "{}", line.remembered());
    queue.pop(now, Priority::Bulk, &mut lost).unwrap();
    assert_eq!(queue.lines[Priority::Default as usize].remembered(), 0);
}

#[test]
fn a_ticket_does_not_name_who_came_after() {
    let (mut queue, now, mut lost) = (Queue::new(Options::default()), Instant::now(), Vec::new());
    let entry = entry(now, &["0", "push", "x", "default", "t"]);
    let first = queue.push(now, entry.clone(), 1, &mut lost).unwrap();
    assert_eq!(queue.pop(now, Priority::Bulk, &mut lost), Some(1));
    let second = queue.push(now, entry, 2, &mut lost).unwrap();
    assert_eq!(second.id, first.id);
    assert_eq!((queue.remove(first), queue.remove(second)), (None, Some(2)));
}

#[test]
fn options_read_from_config() {
    let text = r#"{"target_max": "2s", "weights": {"bulk": 30}}"#;
    let options: Options = serde_json::from_str(text).unwrap();
    assert_eq!(options.target_max, Duration::from_secs(2));
    assert_eq!(options.weights, Weights { bulk: 30, ..Weights::default() });
    assert!(serde_json::from_str::<Options>(r#"{"max": 3}"#).is_err());
}
