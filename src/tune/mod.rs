//! Autotuning: a short trial before a run finds the kernels that an adapter runs fastest, by operation and shape, and keeps the result
//! for the next run.
//!
//! All kernels to choose from give the same bits. A resumed run may therefore choose other kernels than it began with.

mod cache;
mod trial;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use web_time::Instant;

use crate::Result;
use crate::gpu::{AutotuneKey, AutotuneTable, Gpu, ProblemSize, Tune};
use crate::ops::linear::{self, Variant};

/// The time after which a trial measures no further keys. The remaining keys take the first variant; the next start measures them.
const BUDGET: Duration = Duration::from_secs(2);

/// The files of measurements in a cache directory.
pub fn measurements(dir: &Path) -> Vec<PathBuf> {
    cache::files_in(dir)
}

/// The kernels for the problems of a list: those that this device's earlier lists or the cache know, and those of a trial. The table is
/// empty where the device's options want no trial.
///
/// # Errors
/// A failing device. A cache that cannot be read or written is no error.
pub async fn choices(gpu: &Gpu, problem_sizes: &[ProblemSize]) -> Result<AutotuneTable> {
    let wanted = match gpu.tuning.tune {
        Tune::Auto => !gpu.capabilities.cpu,
        Tune::On => true,
        Tune::Off => false,
    };
    if !wanted {
        return Ok(AutotuneTable::default());
    }
    let mut known = gpu.tuned();
    let cache = gpu.tuning.cache.as_ref().map(|dir| cache::Cache::of(dir, &gpu.adapter));
    let kept = cache.as_ref().map(cache::Cache::read).unwrap_or_default();
    let (started, mut measured) = (Instant::now(), Vec::new());
    let mut chosen = AutotuneTable::default();
    for (class, problem) in by_work(gpu, problem_sizes) {
        let texts = linear::version(&gpu.capabilities, &problem);
        let kernel = match known.measured(&class).or_else(|| kept.get(&class, texts)) {
            Some(kernel) => kernel.to_owned(),
            None if started.elapsed() >= BUDGET => continue,
            None => {
                let Some(fastest) = trial::fastest(gpu, &problem).await? else { continue };
                measured.push(cache::Entry::new(class.clone(), texts, fastest));
                fastest.to_owned()
            }
        };
        known.insert(class.clone(), kernel.clone());
        chosen.insert(class, kernel);
    }
    if let Some(cache) = cache.filter(|_| !measured.is_empty()) {
        cache.add(measured);
    }
    gpu.set_tuned(known);
    Ok(chosen)
}

/// The largest problem of each key that has several variants, with the keys that do most of the work first.
fn by_work(gpu: &Gpu, problem_sizes: &[ProblemSize]) -> Vec<(AutotuneKey, ProblemSize)> {
    let mut classes: BTreeMap<AutotuneKey, (u64, ProblemSize)> = BTreeMap::new();
    for problem in problem_sizes.iter().filter(|problem| Variant::all(&gpu.capabilities, problem).len() > 1) {
        let (work, largest) = classes.entry(problem.class()).or_insert((0, *problem));
        *work += problem.work();
        if problem.work() > largest.work() {
            *largest = *problem;
        }
    }
    let mut classes: Vec<_> = classes.into_iter().collect();
    classes.sort_by_key(|(_, (work, _))| std::cmp::Reverse(*work));
    classes.into_iter().map(|(class, (_, problem))| (class, problem)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gpu::{GpuOptions, TuneOptions};

    const PROBLEM: ProblemSize = ProblemSize { op: "linear_forward", storage: "f32", rows: 40, cols: 24, depth: 100 };

    /// The tests' adapter, taken for a GPU.
    fn gpu(tune: Tune, cache: Option<&Path>) -> Gpu {
        let tuning = TuneOptions { tune, cache: cache.map(Path::to_owned) };
        let options = GpuOptions { adapter: std::env::var("LORAINE_ADAPTER").ok(), tuning, ..Default::default() };
        let mut gpu = pollster::block_on(Gpu::open(&options)).unwrap();
        gpu.capabilities.cpu = false;
        gpu
    }

    fn chosen(gpu: &Gpu) -> Option<String> {
        let choices = pollster::block_on(choices(gpu, &[PROBLEM, PROBLEM])).unwrap();
        choices.measured(&PROBLEM.class()).map(str::to_owned)
    }

    fn file(dir: &Path) -> std::path::PathBuf {
        std::fs::read_dir(dir).unwrap().next().expect("a file in the cache").unwrap().path()
    }

    fn edit(dir: &Path, from: &str, to: &str) {
        let text = std::fs::read_to_string(file(dir)).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(file(dir), text.replace(from, to)).unwrap();
    }

    #[test]
    fn a_trial_is_made_once_and_its_result_kept() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("cache");
        let names: Vec<_> =
            Variant::all(&gpu(Tune::Off, None).capabilities, &PROBLEM).iter().map(|variant| variant.name()).collect();
        assert!(names.len() > 1, "{names:?}");
        let first = gpu(Tune::Auto, Some(&dir));
        let fastest = chosen(&first).unwrap();
        assert!(names.contains(&fastest.as_str()), "{fastest}");
        let written = std::fs::read(file(&dir)).unwrap();

        // The device knows it by now, the next one by the file: both believe what was measured, whatever it was.
        let other = names.iter().find(|name| **name != fastest).unwrap();
        edit(&dir, &fastest, other);
        assert_eq!(chosen(&first).as_ref(), Some(&fastest));
        assert_eq!(chosen(&gpu(Tune::On, Some(&dir))).as_deref(), Some(*other));
        assert_eq!(chosen(&gpu(Tune::Off, Some(&dir))), None);

        // Measurements of other kernel texts are repeated and replaced.
        let version = linear::version(&first.capabilities, &PROBLEM);
        edit(&dir, &version.to_string(), &version.wrapping_add(1).to_string());
        assert!(chosen(&gpu(Tune::On, Some(&dir))).is_some());
        let (old, new) = (String::from_utf8(written).unwrap(), std::fs::read_to_string(file(&dir)).unwrap());
        assert_eq!(old.split("fastest").next(), new.split("fastest").next());
    }

    #[test]
    fn software_adapters_are_not_measured_unless_it_is_asked_for() {
        let mut software = gpu(Tune::Auto, None);
        software.capabilities.cpu = true;
        assert_eq!(chosen(&software), None);
        // Nor is a problem that no variant can do.
        let unknown = ProblemSize { op: "no such operation", ..PROBLEM };
        let choices = pollster::block_on(choices(&gpu(Tune::On, None), &[unknown])).unwrap();
        assert_eq!(choices, AutotuneTable::default());
    }

    #[test]
    fn the_heaviest_class_is_measured_first_by_its_largest_problem() {
        let of_rows = |rows| ProblemSize { rows, ..PROBLEM };
        let light = ProblemSize { storage: "bf16", rows: 1024, ..PROBLEM };
        let order = by_work(&gpu(Tune::On, None), &[light, of_rows(600), of_rows(1000), of_rows(500)]);
        let order: Vec<_> = order.into_iter().map(|(_, problem)| problem).collect();
        assert_eq!(order, [of_rows(1000), light, of_rows(500)]);
    }
}
