//! Numbered places for what waits: an index stays good until what it names is taken out.

use std::ops::{Index, IndexMut};

/// A growing table whose freed places are used again.
///
/// It never shrinks: its size is the most that ever waited at once.
#[derive(Debug)]
pub(super) struct Arena<N> {
    places: Vec<Option<N>>,
    free: Vec<u32>,
}

impl<N> Arena<N> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, node: N) -> u32 {
        if let Some(id) = self.free.pop() {
            self.places[id as usize] = Some(node);
            return id;
        }
        self.places.push(Some(node));
        self.places.len() as u32 - 1
    }

    pub(super) fn remove(&mut self, id: u32) -> N {
        self.free.push(id);
        self.places[id as usize].take().expect("what is taken out was put in once")
    }

    pub(super) fn get(&self, id: u32) -> Option<&N> {
        self.places.get(id as usize)?.as_ref()
    }
}

impl<N> Index<u32> for Arena<N> {
    type Output = N;

    fn index(&self, id: u32) -> &N {
        self.get(id).expect("an index names something that is still here")
    }
}

impl<N> IndexMut<u32> for Arena<N> {
    fn index_mut(&mut self, id: u32) -> &mut N {
        self.places[id as usize].as_mut().expect("an index names something that is still here")
    }
}
