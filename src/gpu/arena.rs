//! Buffers that several values share in turn, because no two of them are needed at the same time.
//!
//! WebGPU tracks whole buffers, and a dispatch may not bind one buffer both for reading and for writing. Values that share memory
//! therefore get a buffer of their own, as large as the largest of them, and not ranges of one large buffer.

use std::ops::RangeInclusive;

use super::memory::{Category, Matrix, MemoryPlan, View};

/// The phases during which a buffer's contents are needed. The owner of the arena numbers the phases.
pub type Lifetime = RangeInclusive<u8>;

/// A buffer, and the lifetimes of the views into it.
#[derive(Clone, Debug)]
struct SharedBuffer {
    view: View,
    taken: Vec<Lifetime>,
}

/// Hands out views into a few buffers. Views whose lifetimes do not overlap may share a buffer.
#[derive(Clone, Debug)]
pub struct Arena {
    category: Category,
    buffers: Vec<SharedBuffer>,
}

impl Arena {
    /// An arena without buffers. Its buffers will count in `category`.
    pub fn new(category: Category) -> Self {
        Self { category, buffers: Vec::new() }
    }

    /// A view of `bytes`. Its contents are kept during `lifetimes` and are undefined when a lifetime begins. Asking for the largest
    /// views first keeps the sum small.
    pub fn alloc(&mut self, plan: &mut MemoryPlan, label: &str, bytes: u64, lifetimes: &[Lifetime]) -> View {
        let free = |shared: &&mut SharedBuffer| shared.taken.iter().all(|a| lifetimes.iter().all(|b| !meet(a, b)));
        // A buffer that grows takes fewer new bytes than a new one. Among buffers that need as many, the smallest is taken.
        let cost = |shared: &&mut SharedBuffer| {
            let size = plan.bytes(shared.view);
            (bytes.saturating_sub(size), size)
        };
        let view = match self.buffers.iter_mut().filter(free).min_by_key(cost) {
            Some(shared) => {
                shared.taken.extend_from_slice(lifetimes);
                plan.grow(shared.view, label, bytes)
            }
            None => {
                let view = plan.alloc(self.category, label, bytes);
                self.buffers.push(SharedBuffer { view, taken: lifetimes.to_vec() });
                view
            }
        };
        View { bytes: bytes.max(4).next_multiple_of(16), ..view }
    }

    /// [`MemoryPlan::matrix`] in a shared buffer.
    pub fn matrix(
        &mut self,
        plan: &mut MemoryPlan,
        label: &str,
        rows: u32,
        cols: u32,
        lifetimes: &[Lifetime],
    ) -> Matrix {
        Matrix::padded(rows, cols, |bytes| self.alloc(plan, label, bytes, lifetimes))
    }

    /// [`MemoryPlan::contiguous_matrices`] in a shared buffer.
    pub fn contiguous_matrices<const N: usize>(
        &mut self,
        plan: &mut MemoryPlan,
        label: &str,
        rows: u32,
        cols: [u32; N],
        lifetimes: &[Lifetime],
    ) -> [Matrix; N] {
        Matrix::contiguous(rows, cols, |views| {
            plan.contiguous_views(views, |plan, bytes| self.alloc(plan, label, bytes, lifetimes))
        })
    }
}

fn meet(a: &Lifetime, b: &Lifetime) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shared_in_turn_and_never_at_once() {
        let mut plan = MemoryPlan::new();
        let mut arena = Arena::new(Category::Workspace);
        let mut place = |label: &str, bytes, lifetimes: &[Lifetime]| arena.alloc(&mut plan, label, bytes, lifetimes);
        let long = place("long", 1000, &[1..=9]);
        let early = place("early", 400, &[1..=3]);
        let late = place("late", 480, &[4..=5, 8..=9]);
        let between = place("between", 16, &[6..=7]);
        let again = place("again", 32, &[3..=4]);
        assert_eq!(early.buffer, late.buffer);
        assert_eq!(late.buffer, between.buffer);
        assert!(early.buffer != long.buffer && again.buffer != early.buffer && again.buffer != long.buffer);
        assert_eq!([long, early, late, between, again].map(|view| view.bytes), [1008, 400, 480, 16, 32]);
        // The shared place grew to the larger of its two, and has its name.
        let specs: Vec<_> = plan.specs().iter().map(|spec| (spec.label.as_str(), spec.bytes)).collect();
        assert_eq!(specs, [("long", 1008), ("late", 480), ("again", 32)]);
    }

    #[test]
    fn the_tightest_free_place_is_taken() {
        let mut plan = MemoryPlan::new();
        let mut arena = Arena::new(Category::Workspace);
        let places = [1000, 600, 200].map(|bytes| arena.alloc(&mut plan, "at once", bytes, &[1..=2]));
        let small = arena.alloc(&mut plan, "small", 500, &[3..=3]);
        assert_eq!(small.buffer, places[1].buffer);
        let matrix = arena.matrix(&mut plan, "matrix", 10, 5, &[3..=4]);
        assert_eq!((matrix.view.buffer, matrix.ld, matrix.view.bytes), (places[0].buffer, 8, 320));
    }
}
