//! The invariants of the house, each asked at the moment it could be broken.

use super::{
    plan::Plan,
    watch::{Called, How, Over, Seen, Tried},
};
use std::time::Duration;
use tidegate_core::{Attempt, Class, Error, Kind, Origin, Patience, Retry, UpstreamState};
use tidegate_engine::{Held, Outcome, Record};
use tidegate_policy::{concurrency, retry_budget::WINDOW};

/// Timers are a millisecond fine, and fire late rather than early.
const LATE: Duration = Duration::from_millis(2);
/// Copies of one model's calls under way at once.
const MAX_COPIES: usize = 64;

/// What the engine says of itself.
pub(super) struct Gauges {
    pub(super) held: Held,
    pub(super) gates: Vec<UpstreamState>,
}

impl Seen {
    /// An attempt leaves: in time, before the commit point, where it may, within all limits.
    pub(super) fn at_send(
        &mut self,
        plan: &Plan,
        index: usize,
        attempt: &Attempt<'_>,
        gauges: &Option<Gauges>,
    ) {
        let (now, number) = (self.now, self.tried[index].call);
        let planned = &plan.calls[number];
        self.must(now < planned.deadline, || "it leaves after its deadline".into());
        let (ends, starts) = (attempt.deadline, attempt.deadline - attempt.connect_timeout);
        let in_time =
            ends <= attempt.call.deadline && starts >= tokio::time::Instant::now().into_std();
        self.must(in_time, || "it is given longer than its call has".into());
        self.at_the_gate(plan, index, gauges);
        self.at_asked_waits(index);
        if self.tried[index].is_copy {
            return self.at_copy(plan, number, index);
        }
        let last = self.calls[number].last;
        let last_class = last.and_then(|last| self.tried[last].ended).and_then(How::class);
        // A patient call goes back to the gate that its refusal has shut, and costs nobody more.
        let went_back =
            planned.call.patience == Patience::Free && last_class == Some(Class::Capacity);
        self.tried[index].is_free = attempt.number == 1 || went_back;
        self.calls[number].sent += 1;
        let sent = self.calls[number].sent;
        self.must(attempt.number == sent, || format!("it is number {sent} of its call"));
        let (replied, over) = (self.calls[number].replied.is_some(), self.calls[number].is_over);
        self.must(!replied && !over, || "it leaves after the commit point".into());
        let tried = &self.tried[index];
        let allowed = plan.may_go_to(&planned.call).contains(&(&tried.upstream, &tried.model));
        self.must(allowed, || "it goes where its call may not".into());
        self.at_hedge(plan, number);
        self.at_limits(plan, number, gauges);
        if sent > 1 && last_class == Some(Class::Capacity) {
            self.count("again after a refusal");
        }
    }

    /// An upstream that asked to be left alone is: by all after a refusal for capacity, and by the
    /// call it failed after a fault. What had its permit in the moment it asked still goes.
    fn at_asked_waits(&mut self, index: usize) {
        let (now, tried) = (self.now, &self.tried[index]);
        let binds = |other: &&Tried| {
            (&other.upstream, &other.model) == (&tried.upstream, &tried.model)
                && other.over_at != Some(now)
                && (other.ended == Some(How::Failed(Kind::UpstreamCapacity))
                    || (other.call, other.is_copy) == (tried.call, tried.is_copy))
        };
        let asked = self.tried.iter().filter(binds).filter_map(|other| other.not_before).max();
        let too_soon = asked.is_some_and(|until| now < until);
        self.must(!too_soon, || format!("its upstream asked to be left alone until {asked:?}"));
    }

    /// The gate counts what is out, and lets out no more than it may.
    fn at_the_gate(&mut self, plan: &Plan, index: usize, gauges: &Option<Gauges>) {
        let Some(gate) = gauges.as_ref().and_then(|gauges| gauges.gates.first()) else { return };
        let tried = &self.tried[index];
        let there =
            |other: &&Tried| (&other.upstream, &other.model) == (&tried.upstream, &tried.model);
        let live = self.tried.iter().filter(there).filter(|other| other.ended.is_none()).count();
        let upstream = plan.upstreams.iter().find(|upstream| *upstream.name == *tried.upstream);
        let most = match upstream.map(|upstream| upstream.concurrency) {
            Some(concurrency::Options::Fixed(most)) => most,
            _ => gate.concurrency,
        };
        let (in_flight, waiting) = (gate.in_flight, gate.waiting);
        self.must(in_flight as usize >= live, || {
            format!("{live} are out, the gate says {in_flight}")
        });
        self.must(in_flight <= most, || format!("{in_flight} are out, {most} may be"));
        let queue = &plan.limiters.queue;
        let most = queue.max_waiting.saturating_add(queue.max_patient).saturating_add(1);
        self.must(waiting <= most, || format!("{waiting} wait, {most} may"));
    }

    /// A mirror's copy: one of its call, sent once, and not more than there may be.
    fn at_copy(&mut self, plan: &Plan, number: usize, index: usize) {
        self.calls[number].copies += 1;
        let once = self.calls[number].copies == 1 && self.tried[index].number == 1;
        self.must(once, || "a call is copied once".into());
        let model = plan.models.get(&plan.calls[number].call.model);
        let mirror = model.and_then(|model| model.mirror.as_ref());
        let tried = &self.tried[index];
        let there =
            mirror.is_some_and(|to| (&to.upstream, &to.model) == (&tried.upstream, &tried.model));
        self.must(there, || "a copy goes where no mirror is".into());
        let live = self.tried.iter().filter(|tried| tried.is_copy && tried.ended.is_none()).count();
        self.must(live <= MAX_COPIES * plan.models.len(), || format!("{live} copies"));
        self.count("copy");
    }

    /// Two of one call are out only as a hedge: its first attempt and one elsewhere.
    fn at_hedge(&mut self, plan: &Plan, number: usize) {
        let live: Vec<_> = self.live(number).collect();
        let &[first, second] = &live[..] else {
            return self.must(live.len() == 1, || format!("{} of its call are out", live.len()));
        };
        let [first, second] = [first, second].map(|index| &self.tried[index]);
        let elsewhere = (&first.upstream, &first.model) != (&second.upstream, &second.model);
        let hedged = plan.models.values().any(|model| model.hedge.enabled);
        let is_hedge = (first.number, second.number) == (1, 2) && hedged && elsewhere;
        self.must(is_hedge, || "two of its call are out and it is no hedge".into());
        self.count("hedge");
    }

    /// Who is being answered has come in, and no more came in than may.
    fn at_limits(&mut self, plan: &Plan, number: usize, gauges: &Option<Gauges>) {
        let Some(held) = gauges.as_ref().map(|gauges| gauges.held) else { return };
        let inside: Vec<_> = self.inside().collect();
        let tenant = &plan.calls[number].call.tenant;
        let of_tenant =
            inside.iter().filter(|n| plan.calls[**n].call.tenant.id == tenant.id).count();
        if let Some(most) = plan.limits(tenant).concurrency {
            self.must(of_tenant <= most as usize, || {
                format!("{of_tenant} calls of {}, {most} may be", tenant.id)
            });
        }
        self.at_lease(plan, held);
        let is_counted = |n: &&usize| plan.calls[**n].call.patience == Patience::Counted;
        let all_counted =
            plan.calls.iter().all(|planned| planned.call.patience == Patience::Counted);
        let most = if all_counted { plan.memory.budget } else { usize::MAX };
        let counted = inside.iter().filter(is_counted);
        let bytes: usize = counted.map(|n| plan.calls[*n].call.payload.len()).sum();
        self.must(held.bytes <= most && bytes <= plan.memory.budget, || {
            format!("{} bytes are held, {bytes} by those who must fit", held.bytes)
        });
    }

    /// Whoever was let in holds its lease.
    fn at_lease(&mut self, plan: &Plan, held: Held) {
        let inside: Vec<_> = self.inside().collect();
        let bytes: usize = inside.iter().map(|n| plan.calls[*n].call.payload.len()).sum();
        let is_limited = |n: &&usize| plan.limits(&plan.calls[**n].call.tenant) != <_>::default();
        let limited = inside.iter().filter(is_limited).count();
        let holds =
            held.slots >= inside.len() && held.bytes >= bytes && held.tenant_slots >= limited;
        self.must(holds && held.slots <= plan.max_in_flight, || {
            format!("{inside:?} are inside, {limited} of them limited, with {held:?}")
        });
    }

    /// An attempt ends: by its call's deadline, a copy's too; where the caller takes its time
    /// over a chunk, when it comes back.
    pub(super) fn at_attempts_end(&mut self, plan: &Plan, index: usize, how: How) {
        let Tried { call, is_copy, begun, .. } = self.tried[index];
        let planned = &plan.calls[call];
        let late = if begun && !is_copy { LATE + planned.pauses } else { LATE };
        self.must(self.now <= planned.deadline + late, || "it outlives its call's deadline".into());
        if !is_copy && how != How::Dropped {
            self.calls[call].last = Some(index);
        }
        self.count(format!("{}attempt {how:?}", if is_copy { "copied " } else { "" }));
    }

    /// A reply is passed on: it is the answer of the one attempt that is left.
    pub(super) fn at_reply(&mut self, plan: &Plan, number: usize, gauges: &Option<Gauges>) {
        let Called { sent, is_whole, served, .. } = &self.calls[number];
        let (sent, is_whole, served) = (*sent, *is_whole, served.clone());
        let live: Vec<_> = self.live(number).collect();
        self.must(live.len() == usize::from(!is_whole), || format!("{} are still out", live.len()));
        self.must(served.attempts == sent, || format!("{} of {sent} attempts", served.attempts));
        let winner = live.first().copied().or(self.calls[number].last);
        let by_winner = winner.is_some_and(|winner| {
            let Tried { upstream, model, .. } = &self.tried[winner];
            (upstream, model) == (&served.upstream, &served.model)
        });
        self.must(by_winner, || "another upstream answered".into());
        let took = self.now - self.calls[number].at.unwrap_or_default();
        self.must(served.upstream_time <= took, || "it waited for upstreams before it came".into());
        if let Some(winner) = winner {
            self.count(format!("reply by attempt {}", self.tried[winner].number));
            let model = plan.models.get(&plan.calls[number].call.model);
            let own = model.is_none_or(|model| {
                model.targets.iter().any(|target| {
                    (&target.upstream, &target.model) == (&served.upstream, &served.model)
                })
            });
            self.count(if own { "reply by the model" } else { "reply by a fallback" });
        }
        if let Some(gauges) = gauges {
            self.at_lease(plan, gauges.held);
        }
    }

    /// A chunk reaches the caller: the call still holds all it was given.
    pub(super) fn at_chunk(&mut self, plan: &Plan, number: usize, gauges: &Option<Gauges>) {
        let settled = self.calls[number].record.is_some();
        self.must(!settled, || format!("a chunk of {number} after it was settled"));
        if let Some(gauges) = gauges {
            self.at_lease(plan, gauges.held);
        }
    }

    /// A call is settled: once, and when its attempts have ended.
    pub(super) fn at_settle(&mut self, plan: &Plan, number: usize, record: Record) {
        let live = self.live(number).count();
        self.must(live == 0, || format!("{live} attempts are still out"));
        let before = self.calls[number].record.is_some();
        self.must(!before, || "it has been settled before".into());
        let Called { sent, at, replied, .. } = self.calls[number];
        let at = at.unwrap_or_default();
        self.must(record.attempts == sent, || format!("{} of {sent} attempts", record.attempts));
        self.must(record.duration == self.now - at, || format!("it took {:?}", record.duration));
        let begun = replied.map(|replied| replied - at);
        self.must(record.first_chunk == begun || replied.is_none(), || {
            format!("its first chunk came after {:?}", record.first_chunk)
        });
        let asked = &plan.calls[number].call;
        let same = (&record.tenant, &record.model) == (&asked.tenant.id, &asked.model);
        self.must(same && record.upstream.is_some() == (sent > 0), || format!("{record:?}"));
        self.calls[number].record = Some(record);
    }

    /// A call is over for its caller: settled at once, as what it was, and in time.
    pub(super) fn at_end(&mut self, plan: &Plan, number: usize, over: &Over<'_>) {
        let planned = &plan.calls[number];
        let latest = planned.deadline.max(planned.starts) + LATE + planned.pauses;
        self.must(self.now <= latest, || "it outlives its deadline".into());
        let live = self.live(number).count();
        self.must(live == 0, || format!("{live} attempts are still out"));
        let outcome = self.calls[number].record.as_ref().map(|record| record.outcome);
        let fits = match over {
            Over::Answered => outcome == Some(Outcome::Ok),
            Over::Refused(error) | Over::Broken(error) => {
                outcome == Some(Outcome::Failed(error.kind()))
            }
            // A whole answer was all there when its caller left.
            Over::HungUp if self.calls[number].is_whole => outcome == Some(Outcome::Ok),
            Over::HungUp => outcome == Some(Outcome::Cancelled),
        };
        self.must(fits, || format!("it was settled as {outcome:?}"));
        match over {
            Over::Refused(error) => self.at_refusal(plan, number, error),
            Over::Answered => self.count("over Answered"),
            Over::Broken(error) => self.count(format!("over Broken {:?}", error.kind())),
            Over::HungUp => self.at_hanging_up(number),
        }
    }

    fn at_hanging_up(&mut self, number: usize) {
        let cut = self.tried.iter().rev().find(|tried| tried.call == number && !tried.is_copy);
        let phase = match (&self.calls[number], cut.and_then(|cut| cut.ended)) {
            (Called { replied: Some(_), .. }, _) => "while it is answered",
            (_, Some(How::Dropped)) => "before its first token",
            (_, Some(_)) => "between attempts",
            (_, None) => "in line",
        };
        self.count(format!("hung up {phase}"));
    }

    /// A call is refused: with the attempts that were made, and when to come again.
    fn at_refusal(&mut self, plan: &Plan, number: usize, error: &Error) {
        let sent = self.calls[number].sent;
        self.must(error.attempts() == sent, || format!("{} of {sent} attempts", error.attempts()));
        self.must(sent == 0 || error.retry() == Retry::Never, || "it says to try again".into());
        let by_upstream = error.origin() == Origin::Upstream;
        self.must(sent > 0 || !by_upstream, || "no upstream was asked".into());
        let call = &plan.calls[number].call;
        let too_large = || {
            let most = plan.limits(&call.tenant).tokens_per_minute;
            most.is_some_and(|most| call.tokens.total() > most)
        };
        let named = error.retry_after().is_some_and(|wait| !wait.is_zero());
        let names_wait = match error.kind() {
            Kind::RateLimited => named || too_large(),
            Kind::ConcurrencyLimited | Kind::Overloaded => named,
            Kind::Unavailable if !by_upstream => named || !plan.has_target(call),
            _ => true,
        };
        self.must(names_wait, || "it does not say when to come again".into());
        let last = self.calls[number].last.map(|last| &self.tried[last]);
        let last = last.filter(|last| last.over_at == Some(self.now));
        let same = last.is_none_or(|last| error.upstream() == Some(&last.upstream));

        self.must(!by_upstream || same, || format!("{:?} did not say so", error.upstream()));
        self.count(format!("refused {:?} by {:?} after {sent}", error.kind(), error.origin()));
    }

    /// All callers have left: nothing is held but by copies, and the budgets were kept.
    pub(super) fn at_last(&mut self, plan: &Plan, gauges: &Option<Gauges>) {
        let unsettled = self.calls.iter().filter(|call| call.record.is_none()).count();
        self.must(unsettled == 0, || format!("{unsettled} calls were never settled"));
        let Some(Gauges { held, gates }) = gauges else { return };
        self.must((held.slots, held.bytes, held.tenant_slots) == (0, 0, 0), || format!("{held:?}"));
        for gate in gates {
            let here =
                |tried: &&Tried| (&tried.upstream, &tried.model) == (&gate.upstream, &gate.model);
            let live = self.tried.iter().filter(here).filter(|tried| tried.ended.is_none()).count();
            let name = (&gate.upstream, &gate.model);
            self.must((gate.in_flight as usize, gate.waiting) == (live, 0), || {
                format!(
                    "at {name:?} {live} are out, {} say its slots and {} wait",
                    gate.in_flight, gate.waiting
                )
            });
            self.at_budget(plan, gate);
        }
        let hedges = self.tally.get("hedge").copied().unwrap_or_default();
        let most = (plan.calls.len() as f64 * 0.05).ceil();
        self.must(hedges as f64 <= most, || format!("{hedges} hedges, {most} were earned"));
    }

    /// What one upstream got beyond first attempts is within its retry budget, whose window is
    /// ten seconds long. Copies are nobody's attempts.
    fn at_budget(&mut self, plan: &Plan, gate: &UpstreamState) {
        let here = |tried: &&Tried| {
            (&tried.upstream, &tried.model) == (&gate.upstream, &gate.model) && !tried.is_copy
        };
        let is_first =
            |tried: &&Tried| tried.number == 1 && plan.calls[tried.call].call.client_retries == 0;
        let first = self.tried.iter().filter(here).filter(is_first).count() as f64;
        let again = self.tried.iter().filter(here).filter(|tried| !tried.is_free).count() as f64;
        let options = &plan.limiters.retry_budget;
        let windows = (self.now.as_secs_f64() / WINDOW as f64).ceil().max(1.0);
        // What was earned in one window may be spent in the next.
        let earned = options.ratio * first * if windows > 1.0 { 2.0 } else { 1.0 };
        let most = earned + options.floor_per_second * WINDOW as f64 * windows;
        self.must(again <= most, || {
            format!(
                "{again} attempts beyond the first at {}/{}, {most} allowed",
                gate.upstream, gate.model
            )
        });
    }

    /// The call's own attempts that are out.
    fn live(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        let mine =
            move |tried: &Tried| tried.call == number && !tried.is_copy && tried.ended.is_none();
        (0..self.tried.len()).filter(move |index| mine(&self.tried[*index]))
    }

    /// Calls that were let in and are not over yet, as far as can be seen.
    fn inside(&self) -> impl Iterator<Item = usize> + '_ {
        let inside = |call: &Called| call.sent > 0 && call.record.is_none() && !call.is_over;
        (0..self.calls.len()).filter(move |number| inside(&self.calls[*number]))
    }
}

impl How {
    /// What the end says of the upstream; `None` when it was the caller's or ours.
    fn class(self) -> Option<Class> {
        match self {
            Self::Failed(kind) => Some(Error::new(kind, Origin::Upstream, "").class()),
            Self::Answered | Self::Broken(_) | Self::Dropped => None,
        }
    }
}
