//! What must hold when an attempt ends, and when a call is passed on, settled, over.

use super::{Gauges, LATE};
use crate::driver::{
    plan::Plan,
    watch::{Called, How, Over, Seen, Tried},
};
use std::time::Duration;
use tidegate_core::{BreakerState, Error, Kind, Origin, Priority, Reply, Retry, UpstreamState};
use tidegate_engine::{Outcome, Record, limits::Rule};
use tidegate_policy::retry_budget::WINDOW;

/// A slot that is free for this long is anybody's: they are handed out one after the other, but
/// no further apart than a second.
const LONG: Duration = Duration::from_millis(1_100);

impl Seen {
    /// An attempt ends: by its call's deadline, a copy's too; where the caller takes its time
    /// over a chunk, when it comes back.
    pub(in crate::driver) fn at_attempts_end(&mut self, plan: &Plan, index: usize, how: How) {
        let Tried { call, is_copy, begun_at, .. } = self.tried[index];
        let planned = &plan.calls[call];
        let pause = if is_copy || begun_at.is_none() { LATE } else { LATE + planned.pauses };
        self.must(self.now <= planned.deadline + pause, || "it outlives its deadline".into());
        if !is_copy && !how.is_dropped() {
            self.calls[call].last = Some(index);
        }
        self.count(format!("{} {how:?}", if is_copy { "copy" } else { "attempt" }));
    }

    /// A reply is passed on: at once, as the answer of the one attempt that is left.
    pub(in crate::driver) fn at_reply(
        &mut self,
        plan: &Plan,
        number: usize,
        reply: &Reply,
        gauges: &Option<Gauges>,
    ) {
        let live: Vec<_> = self.live(number).collect();
        let is_whole = reply.body.as_whole().is_some();
        self.must(live.len() == usize::from(!is_whole), || format!("{} are still out", live.len()));
        let (served, sent) = (&reply.served, self.calls[number].sent);
        self.must(served.attempts == sent, || format!("{} of {sent} attempts", served.attempts));
        let winner = live.first().copied().or(self.calls[number].last);
        let place = (&*served.upstream, &*served.model);
        let by_winner = winner.is_some_and(|winner| {
            let Tried { begun_at, ended_at, .. } = self.tried[winner];
            self.tried[winner].place() == place && begun_at.or(ended_at) == Some(self.now)
        });
        self.must(by_winner, || "another upstream answered, or it was kept back".into());
        let took = self.now - self.calls[number].at.unwrap_or_default();
        self.must(served.upstream_time <= took, || "it waited for upstreams before it came".into());
        if let Some(gauges) = gauges {
            self.at_lease(plan, gauges.held);
        }
        let model = plan.models.get(&plan.calls[number].call.model);
        let is_own = model.is_none_or(|model| {
            model.targets.iter().any(|target| (&*target.upstream, &*target.model) == place)
        });
        self.count(if is_own { "reply by the model" } else { "reply by a fallback" });
        self.count(format!("reply after {sent}"));
    }

    /// A chunk reaches the caller: the call still holds all it was given.
    pub(in crate::driver) fn at_chunk(
        &mut self,
        plan: &Plan,
        number: usize,
        gauges: &Option<Gauges>,
    ) {
        let settled = self.calls[number].record.is_some();
        self.must(!settled, || format!("a chunk of {number} after it was settled"));
        if let Some(gauges) = gauges {
            self.at_lease(plan, gauges.held);
        }
    }

    /// A call is settled: once, and when its attempts have ended.
    pub(in crate::driver) fn at_settle(&mut self, plan: &Plan, number: usize, record: Record) {
        let live = self.live(number).count();
        self.must(live == 0, || format!("{live} attempts are still out"));
        let before = self.calls[number].record.is_some();
        self.must(!before, || "it has been settled before".into());
        let Called { sent, at, replied, .. } = self.calls[number];
        let at = at.unwrap_or_default();
        self.must(record.attempts == sent, || format!("{} of {sent} attempts", record.attempts));
        self.must(record.duration == self.now - at, || format!("it took {:?}", record.duration));
        let begun = replied.map(|replied| replied - at);
        self.must(record.first_chunk == begun, || {
            format!("its first chunk came after {:?}", record.first_chunk)
        });
        let asked = &plan.calls[number].call;
        let same = (&record.tenant, &record.model) == (&asked.tenant.id, &asked.model);
        self.must(same && record.upstream.is_some() == (sent > 0), || format!("{record:?}"));
        self.calls[number].record = Some(record);
    }

    /// A call is over for its caller: settled at once, as what it was, and in time.
    pub(in crate::driver) fn at_end(
        &mut self,
        plan: &Plan,
        number: usize,
        over: &Over<'_>,
        gauges: &Option<Gauges>,
    ) {
        let planned = &plan.calls[number];
        let latest = planned.deadline.max(planned.starts) + LATE + planned.pauses;
        self.must(self.now <= latest, || "it outlives its deadline".into());
        let live = self.live(number).count();
        self.must(live == 0, || format!("{live} attempts are still out"));
        let record = self.calls[number].record.as_ref();
        let (outcome, usage) = (record.map(|record| record.outcome), record.map(|r| r.usage));
        let fits = match over {
            Over::Answered => outcome == Some(Outcome::Ok) && usage.flatten().is_some(),
            Over::Refused(error) | Over::Broken(error) => {
                outcome == Some(Outcome::Failed(error.kind()))
            }
            // A whole answer was all there when its caller left.
            Over::HungUp if self.calls[number].is_whole => outcome == Some(Outcome::Ok),
            Over::HungUp => outcome == Some(Outcome::Cancelled),
        };
        self.must(fits, || format!("it was settled as {outcome:?} with {usage:?}"));
        match over {
            Over::Refused(error) => {
                self.at_refusal(plan, number, error);
                self.at_waiting_in_vain(plan, number, error, gauges);
            }
            Over::Answered => self.count("over answered"),
            Over::Broken(error) => self.count(format!("over broken {:?}", error.kind())),
            Over::HungUp => self.at_hanging_up(number),
        }
    }

    fn at_hanging_up(&mut self, number: usize) {
        let mine = |tried: &&Tried| tried.call == number && !tried.is_copy;
        let last = self.tried.iter().rev().find(mine);
        let phase = match (&self.calls[number], last.and_then(|last| last.ended)) {
            (Called { replied: Some(_), .. }, _) => "in its answer",
            (_, Some(How::Dropped | How::Unsent)) => "before its first token",
            (_, Some(_)) => "between attempts",
            (_, None) => "in line",
        };
        self.count(format!("over hung up {phase}"));
    }

    /// A call is refused: with the attempts that were made, and when to come again.
    fn at_refusal(&mut self, plan: &Plan, number: usize, error: &Error) {
        let sent = self.calls[number].sent;
        self.must(error.attempts() == sent, || format!("{} of {sent} attempts", error.attempts()));
        self.must(sent == 0 || error.retry() == Retry::Never, || "it says to try again".into());
        let by_upstream = error.origin() == Origin::Upstream;
        self.must(sent > 0 || !by_upstream, || "no upstream was asked".into());
        let call = &plan.calls[number].call;
        // A prompt has no more tokens than bytes, whatever was learned of its upstream.
        let tokens = call.tokens.input.max(call.payload.len() as u64) + call.tokens.output;
        let too_large = || tokens > plan.most_tokens(call);
        let named = error.retry_after().is_some_and(|wait| !wait.is_zero());
        let names_wait = match error.kind() {
            Kind::RateLimited => named || too_large(),
            Kind::ConcurrencyLimited | Kind::Overloaded => named,
            Kind::Unavailable if !by_upstream => named || !plan.has_target(call),
            _ => true,
        };
        self.must(names_wait, || "it does not say when to come again".into());
        let last = self.calls[number].last.map(|last| &self.tried[last]);
        let last = last.filter(|last| last.ended_at == Some(self.now) && by_upstream);
        let said_so = last.is_none_or(|last| error.upstream() == Some(&last.upstream));
        self.must(said_so, || format!("{:?} did not say so", error.upstream()));
        self.count(format!("over refused {:?} by {:?}", error.kind(), error.origin()));
        self.count(format!("over refused after {sent}"));
    }

    /// Nobody of the first class waits in line to its deadline for a gate that lets calls pass,
    /// and at which nothing has moved for long.
    fn at_waiting_in_vain(
        &mut self,
        plan: &Plan,
        number: usize,
        error: &Error,
        gauges: &Option<Gauges>,
    ) {
        let (Some(Gauges { gates, .. }), Some(name)) = (gauges, error.upstream()) else { return };
        let (call, Called { at, sent, .. }) = (&plan.calls[number].call, &self.calls[number]);
        let in_line = (error.kind(), error.origin()) == (Kind::DeadlineExceeded, Origin::Gateway);
        let long_ago = |at: Option<Duration>| at.is_none_or(|at| at + LONG < self.now);
        if !in_line || call.priority != Priority::Interactive || *sent > 0 || !long_ago(*at) {
            return;
        }
        let upstream = plan.upstream(name);
        let lets_pass = |gate: &UpstreamState| {
            gate.in_flight < gate.concurrency
                && gate.breaker == BreakerState::Closed
                && gate.shut_for.is_zero()
                && gate.requests_per_second.is_none()
                && upstream.pacer.tokens_per_minute.is_none()
        };
        let may = plan.may_go_to(call);
        let here = |gate: &&UpstreamState| {
            *gate.upstream == *name && may.contains(&(&gate.upstream, &gate.model))
        };
        let passable = gates.iter().filter(here).all(lets_pass);
        let mut tried = self.tried.iter().filter(|tried| *tried.upstream == *name);
        let quiet = tried.all(|tried| long_ago(tried.ended_at) && long_ago(Some(tried.sent_at)));
        self.must(!(passable && quiet), || "it waited for nothing".into());
    }

    /// All callers have left: nothing is held but by copies, and the budgets were kept.
    pub(in crate::driver) fn at_last(&mut self, plan: &Plan, gauges: &Option<Gauges>) {
        let unsettled = self.calls.iter().filter(|call| call.record.is_none()).count();
        self.must(unsettled == 0, || format!("{unsettled} calls were never settled"));
        let Some(Gauges { held, gates }) = gauges else { return };
        self.must((held.slots, held.bytes, held.tenant_slots) == (0, 0, 0), || format!("{held:?}"));
        self.must((held.limit_slots, held.limit_tokens) == (0, 0), || format!("{held:?}"));
        for gate in gates {
            let place = (&*gate.upstream, &*gate.model);
            let live = self.live_at(place);
            self.must((gate.in_flight as usize, gate.waiting) == (live, 0), || {
                let UpstreamState { in_flight, waiting, .. } = gate;
                format!("{live} are out at {place:?}, which counts {in_flight} and {waiting}")
            });
            self.at_budget(plan, place);
        }
        self.at_rates(plan);
        let hedges = self.tally.get("hedge").copied().unwrap_or_default();
        let most = (plan.calls.len() as f64 * 0.05).ceil();
        self.must(hedges as f64 <= most, || format!("{hedges} hedges, {most} were earned"));
    }

    /// No more calls were sent, and no more attempts, than limits of requests let pass.
    fn at_rates(&mut self, plan: &Plan) {
        let call = |n: &usize| &plan.calls[*n].call;
        let sent: Vec<_> = (0..self.calls.len()).filter(|n| self.calls[*n].sent > 0).collect();
        let limited = |rule: &Rule| rule.limits.requests_per_minute;
        let mut passed = Vec::new();
        for tenant in plan.calls.iter().map(|planned| &planned.call.tenant) {
            let its = sent.iter().filter(|n| call(n).tenant.id == tenant.id).count();
            passed.push((&tenant.id, plan.limits(tenant).requests_per_minute, its));
        }
        for (name, rule) in &plan.limits.teams {
            let its = sent.iter().filter(|n| call(n).tenant.team.as_ref() == Some(name)).count();
            passed.push((name, limited(rule), its));
        }
        for (name, rule) in &plan.limits.models {
            let its = sent.iter().filter(|n| call(n).model == *name).count();
            passed.push((name, limited(rule), its));
        }
        for (name, rule) in &plan.limits.upstreams {
            let its =
                self.tried.iter().filter(|tried| tried.upstream == *name && !tried.is_copy).count();
            passed.push((name, limited(rule), its));
        }
        for (name, rate, passed) in passed {
            let Some(rate) = rate else { continue };
            let most = f64::from(rate) * (1.0 + self.now.as_secs_f64() / 60.0);
            self.must(passed as f64 <= most, || format!("{passed} of {name}, {most} may be"));
        }
    }

    /// What one upstream got beyond first attempts is within its retry budget, whose window is
    /// ten seconds long. Copies are nobody's attempts.
    fn at_budget(&mut self, plan: &Plan, place: (&str, &str)) {
        let is_first =
            |tried: &&Tried| tried.number == 1 && plan.calls[tried.call].call.client_retries == 0;
        let here = |tried: &&Tried| tried.place() == place && !tried.is_copy;
        let here = || self.tried.iter().filter(here);
        let first = here().filter(is_first).count() as f64;
        let again = here().filter(|tried| !tried.is_free).count() as f64;
        let options = &plan.limiters.retry_budget;
        let windows = (self.now.as_secs_f64() / WINDOW as f64).ceil().max(1.0);
        // What was earned in one window may be spent in the next.
        let earned = options.ratio * first * if windows > 1.0 { 2.0 } else { 1.0 };
        let most = earned + options.floor_per_second * WINDOW as f64 * windows;
        self.must(again <= most, || {
            format!("{again} attempts beyond the first at {place:?}, {most} allowed")
        });
    }
}
