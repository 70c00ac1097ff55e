//! An answer on its way to the rows equal to the one that was called.

use super::attempt::{Bad, Ended, Good};
use crate::{
    journal::{Place, Window},
    output,
};
use bytes::Bytes;
use std::{fs::File, io, path::Path, sync::Arc};

/// One answer for all rows of a group.
pub(super) struct Echo {
    pub(super) group: u32,
    /// Which of its rows is next.
    pub(super) at: usize,
    pub(super) model: Option<Arc<str>>,
    pub(super) result: Result<Good, Bad>,
}

impl Echo {
    /// The answer a call of this run got.
    pub(super) fn of(group: u32, ended: Ended) -> Self {
        Self { group, at: 0, model: Some(ended.sent.model), result: ended.result }
    }

    /// The answer an earlier run journaled.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no answer.
    pub(super) fn from_journal(journal: &Path, place: Place, group: u32) -> io::Result<Self> {
        let mut window = Window::new(File::open(journal)?);
        let (_, line) = window.record(place)?;
        let line = output::read(line)?;
        let response = line.response.ok_or_else(|| io::Error::other("the row has no answer"))?;
        let good = Good {
            status: response.status_code,
            request_id: response.request_id.as_deref().map(Arc::from),
            body: Bytes::copy_from_slice(response.body.get().as_bytes()),
        };
        Ok(Self { group, at: 0, model: line.model.as_deref().map(Arc::from), result: Ok(good) })
    }
}
