//! A place in line, and how its turn is told.

use super::{Gate, Permit, Waiter};
use tidegate_core::Result;
use tidegate_policy::queue::{Lost, Ticket, Why};
use tokio::sync::oneshot;

/// What became of an attempt that came to the gate.
#[expect(clippy::large_enum_variant, reason = "moved once per attempt: a box costs more")]
pub(super) enum Joined<'g> {
    Entered(Permit),
    Waits(Waiting<'g>),
}

/// A place in line; leaving it early makes room.
pub(super) struct Waiting<'g> {
    pub(super) gate: &'g Gate,
    pub(super) ticket: Ticket,
    pub(super) told: oneshot::Receiver<Result<Permit>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.told.close();
        // Granted in the moment its caller left: it is given back.
        drop(self.told.try_recv());
        let mut state = self.gate.state.lock();
        let left = state.line.remove(self.ticket);
        let head = state.head.take_if(|head| head.turn.is_closed());
        drop(state);
        if left.is_none() || head.is_some() {
            // It may have been next: whoever works the line looks again.
            self.gate.freed.notify_one();
        }
    }
}

/// Turns to be told once the lock is released: a permit nobody takes is given back then.
#[derive(Default)]
pub(super) struct News(pub(super) Vec<(oneshot::Sender<Result<Permit>>, Result<Permit>)>);

impl News {
    pub(super) fn lost(&mut self, gate: &Gate, lost: Vec<Lost<Waiter>>) {
        for Lost { item, why, .. } in lost {
            let error = match why {
                Why::Expired => gate.too_late(),
                Why::Overloaded | Why::Displaced => gate.is_full(why),
            };
            self.0.push((item.turn, Err(error)));
        }
    }

    pub(super) fn tell(self) {
        for (turn, told) in self.0 {
            // Where its caller has just left it is given back.
            drop(turn.send(told));
        }
    }
}
