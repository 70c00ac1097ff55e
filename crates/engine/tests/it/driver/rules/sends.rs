//! What must hold when an attempt leaves.

use super::Gauges;
use crate::driver::{
    plan::Plan,
    watch::{How, Seen, Tried},
};
use tidegate_core::{Attempt, Class, Kind, Patience};
use tidegate_engine::limits;
use tidegate_policy::concurrency;

/// Copies of one model's calls under way at once.
const MAX_COPIES: usize = 64;

impl Seen {
    /// An attempt leaves: in time, before the commit point, where it may, within all limits.
    pub(in crate::driver) fn at_send(
        &mut self,
        plan: &Plan,
        index: usize,
        attempt: &Attempt<'_>,
        gauges: &Option<Gauges>,
    ) {
        let number = self.tried[index].call;
        let planned = &plan.calls[number];
        self.must(self.now < planned.deadline, || "it leaves after its deadline".into());
        let connected = tokio::time::Instant::now().into_std() + attempt.connect_timeout;
        let in_time = attempt.deadline <= attempt.call.deadline && connected <= attempt.deadline;
        self.must(in_time, || "it is given longer than its call has".into());
        self.at_the_gate(plan, index, gauges);
        self.at_asked_waits(index);
        if self.tried[index].is_copy {
            return self.at_copy(plan, number, index);
        }
        self.calls[number].sent += 1;
        let sent = self.calls[number].sent;
        self.must(attempt.number == sent, || format!("it is number {sent} of its call"));
        let (replied, over) = (self.calls[number].replied.is_some(), self.calls[number].is_over);
        self.must(!replied && !over, || "it leaves after the commit point".into());
        let allowed = plan.may_go_to(&planned.call).contains(&self.tried[index].place());
        self.must(allowed, || "it goes where its call may not".into());
        self.at_price(plan, number, index);
        self.at_hedge(plan, number);
        self.at_limits(plan, number, gauges);
    }

    /// Whether the attempt could be had without the retry budget.
    fn at_price(&mut self, plan: &Plan, number: usize, index: usize) {
        let last = self.calls[number].last.and_then(|last| self.tried[last].ended);
        let refused = last.and_then(How::class) == Some(Class::Capacity);
        // A patient call goes back to the gate that its refusal has shut, and costs nobody more.
        let went_back = refused && plan.calls[number].call.patience == Patience::Free;
        self.tried[index].is_free = self.tried[index].number == 1 || went_back;
        if refused {
            self.count(format!("again after a refusal, free: {went_back}"));
        }
    }

    /// An upstream that asked to be left alone is: by all after a refusal for capacity, and by the
    /// call it failed after a fault. What had its permit in the moment it asked still goes.
    fn at_asked_waits(&mut self, index: usize) {
        let (now, tried) = (self.now, &self.tried[index]);
        let binds = |other: &&Tried| {
            let same_call = (other.call, other.is_copy) == (tried.call, tried.is_copy);
            let all_calls = other.ended == Some(How::Failed(Kind::UpstreamCapacity));
            other.place() == tried.place()
                && other.ended_at != Some(now)
                && (same_call || all_calls)
        };
        let asked = self.tried.iter().filter(binds).filter_map(|other| other.not_before).max();
        let too_soon = asked.is_some_and(|until| now < until);
        self.must(!too_soon, || format!("its upstream asked to be left alone until {asked:?}"));
    }

    /// The gate counts what is out, and lets out no more than it may.
    fn at_the_gate(&mut self, plan: &Plan, index: usize, gauges: &Option<Gauges>) {
        let Some(gate) = gauges.as_ref().and_then(|gauges| gauges.gates.first()) else { return };
        let live = self.live_at(self.tried[index].place());
        let most = match plan.upstream(&gate.upstream).concurrency {
            concurrency::Options::Fixed(most) => most,
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
        let mirror = mirror.map(|to| (&*to.upstream, &*to.model));
        let there = mirror == Some(self.tried[index].place());
        self.must(there, || "a copy goes where no mirror is".into());
        let live = self.tried.iter().filter(|tried| tried.is_copy && tried.ended.is_none()).count();
        self.must(live <= MAX_COPIES * plan.models.len(), || format!("{live} copies"));
        self.count("copy");
    }

    /// Two of one call are out only as a hedge: its first attempt and one elsewhere.
    fn at_hedge(&mut self, plan: &Plan, number: usize) {
        let live: Vec<_> = self.live(number).map(|index| &self.tried[index]).collect();
        let &[first, second] = &live[..] else {
            let out = live.len();
            return self.must(out == 1, || format!("{out} of its call are out"));
        };
        let hedged = plan.models.values().any(|model| model.hedge.enabled);
        let is_hedge = (first.number, second.number) == (1, 2) && first.place() != second.place();
        self.must(is_hedge && hedged, || "two of its call are out and it is no hedge".into());
        self.count("hedge");
    }

    /// Who is being answered has come in, and no more came in than may.
    fn at_limits(&mut self, plan: &Plan, number: usize, gauges: &Option<Gauges>) {
        let Some(held) = gauges.as_ref().map(|gauges| gauges.held) else { return };
        self.at_lease(plan, held);
        let call = |n: usize| &plan.calls[n].call;
        let tenant = &call(number).tenant;
        let of_tenant = self.inside().filter(|n| call(*n).tenant.id == tenant.id).count();
        let most = plan.limits(tenant).concurrency.map_or(usize::MAX, |most| most as usize);
        self.must(of_tenant <= most, || {
            format!("{of_tenant} calls of {}, {most} may be", tenant.id)
        });
        self.at_shared_limits(plan, number);
        // Batch rows are bounded by their job and take what they need.
        let counted = self.inside().filter(|n| call(*n).patience == Patience::Counted);
        let bytes: usize = counted.map(|n| call(n).payload.len()).sum();
        let budget = plan.memory.budget;
        self.must(bytes <= budget, || format!("{bytes} bytes are held of {budget}"));
    }

    /// No more calls of a team or to a model, and attempts at an upstream, are out than may be.
    fn at_shared_limits(&mut self, plan: &Plan, number: usize) {
        let call = |n: usize| &plan.calls[n].call;
        let limits::Options { teams, models, upstreams, .. } = &plan.limits;
        let team = call(number).tenant.team.as_ref();
        let of_team = self.inside().filter(|n| call(*n).tenant.team.as_ref() == team).count();
        let of_model = self.inside().filter(|n| call(*n).model == call(number).model).count();
        let upstream = self.tried.last().map(|tried| tried.upstream.clone()).unwrap_or_default();
        // A copy takes nothing of limits.
        let here =
            |tried: &&Tried| tried.upstream == upstream && tried.ended.is_none() && !tried.is_copy;
        let there = self.tried.iter().filter(here).count();
        for (rule, out) in [
            (team.and_then(|team| teams.get(team)), of_team),
            (models.get(&call(number).model), of_model),
            (upstreams.get(&upstream), there),
        ] {
            let Some(most) = rule.and_then(|rule| rule.limits.concurrency) else { continue };
            self.must(out <= most as usize, || format!("{out} are out of {rule:?}"));
        }
    }
}
