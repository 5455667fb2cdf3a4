//! The cache of keys or values that generation appends to.

use super::rows::scatter_rows;
use crate::gpu::{Matrix, Recorder, View};

/// Row `positions[i]` of `cache` becomes row i of `source`; positions beyond the cache's end are skipped.
pub fn kv_append(rec: &mut Recorder, source: Matrix, positions: View, cache: Matrix) {
    scatter_rows(rec, source, positions, cache);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close};

    #[test]
    fn rows_land_at_their_positions_and_not_past_the_end() {
        let mut lab = Lab::new();
        let (source, before) = (lab.normal(3 * 6), lab.normal(4 * 6));
        let (device_source, cache) = (lab.matrix(3, 6, &source), lab.matrix(4, 6, &before));
        let positions = lab.words(&[3, 1, 4]);
        let mut rec = lab.recorder();
        kv_append(&mut rec, device_source, positions, cache);
        lab.run(&rec);
        let want = [&before[..6], &source[6..12], &before[12..18], &source[..6]].concat();
        assert_close("cache", &lab.read(cache), &want, 1e-7);
    }
}
