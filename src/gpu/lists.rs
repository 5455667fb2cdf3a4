//! Prepared command lists, kept by key: a pass of a shape that came before is replayed and creates nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::device::Gpu;
use super::error::GpuError;
use super::execute::{Buffers, Prepared};
use super::profile::Profile;

/// Prepared lists by key, a bounded number of them: each holds a bind group for every dispatch.
pub struct Lists<K> {
    prepared: HashMap<K, Prepared>,
    max: usize,
}

impl<K: Eq + Hash> Lists<K> {
    /// An empty store. When it holds `max` lists, the next one replaces all of them.
    pub fn new(max: usize) -> Self {
        Self { prepared: HashMap::new(), max }
    }

    /// True if the list of `key` is prepared.
    pub fn contains(&self, key: &K) -> bool {
        self.prepared.contains_key(key)
    }

    /// The list of `key`. `prepare` makes it if the store does not have it yet.
    ///
    /// # Errors
    /// An error of `prepare`; nothing is kept then.
    pub fn get_or_prepare(
        &mut self,
        key: K,
        prepare: impl FnOnce() -> Result<Prepared, GpuError>,
    ) -> Result<&Prepared, GpuError> {
        if self.prepared.len() >= self.max && !self.prepared.contains_key(&key) {
            self.prepared.clear();
        }
        match self.prepared.entry(key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(prepare()?)),
        }
    }
}

impl Gpu {
    /// Runs a list. With a profile, each dispatch runs in a pass of its own, and its time is added to the profile.
    ///
    /// # Errors
    /// A failing device.
    pub async fn replay(
        &self,
        list: &Prepared,
        buffers: &mut Buffers,
        profile: Option<&mut Profile>,
    ) -> Result<(), GpuError> {
        match profile {
            Some(profile) => self.run_profiled(list, buffers, profile).await,
            None => self.run(list, buffers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Category, GpuOptions, MemoryPlan};

    #[test]
    fn a_key_is_prepared_once_until_too_many_are_there() {
        let gpu = pollster::block_on(Gpu::open(&GpuOptions::default())).expect("the tests need an adapter");
        let mut plan = MemoryPlan::new();
        let uniform = plan.alloc(Category::Uploads, "dispatch parameters", 256);
        let mut buffers = Buffers::default();
        pollster::block_on(gpu.allocate(&plan, &mut buffers)).unwrap();
        let mut lists = Lists::new(2);
        let mut made = Vec::new();
        for key in ["a", "b", "a", "b", "c", "c", "a"] {
            let prepare = || {
                made.push(key);
                gpu.prepare(&[], &buffers, uniform)
            };
            lists.get_or_prepare(key, prepare).unwrap();
        }
        assert_eq!(made, ["a", "b", "c", "a"]);
    }
}
