//! The cached copy of a quantized base: the same bits, taken only while it is of the same files, and never trusted when damaged.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::common::cli::{copy_files, edit};
use crate::common::{adapter, fixture, gpu, whole_sequence};
use loraine::model::source::{CacheSettings, Source};
use loraine::network::base::BaseStorage;
use loraine::network::moments::{MomentStorage, Shard};
use loraine::network::quantized_cache;
use loraine::quant::format::{Code4, Storage};
use loraine::train::engine::Engine;
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};

const NF4: Storage = Code4::Nf4.storage(true);

struct Model {
    place: tempfile::TempDir,
}

impl Model {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        copy_files(&fixture("llama_untied"), &place.path().join("model"));
        Self { place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Loads the model with the cache at `cache` and returns its logits.
    fn logits(&self, base: BaseStorage, cache: Option<&str>, min_bytes: u64) -> Vec<f32> {
        self.logits_within(base, cache, min_bytes, u64::MAX)
    }

    fn logits_within(&self, base: BaseStorage, cache: Option<&str>, min_bytes: u64, max_bytes: u64) -> Vec<f32> {
        let model = self.path("model");
        let mut source = Source::open(&model).unwrap();
        source.cache = cache.map(|dir| CacheSettings { dir: self.path(dir), min_bytes, max_bytes });
        let config = &source.config;
        let (modules, tensors) = adapter(&fixture("llama_untied/adapter"), config);
        let gpu = gpu();
        let recompute = RecomputePolicy::Keep(0);
        let training = Some(MomentStorage::F32);
        let settings = PlanSettings {
            base,
            max_rows: 32,
            max_positions: 32,
            recompute,
            dropout: 0.0,
            loraplus: false,
            neftune_alpha: 0.0,
            training,
            distillation: None,
            shard: Shard::default(),
        };
        let stored = |name: &str| source.stored(name);
        let plan = TrainPlan::new(gpu.capabilities, config, stored, &modules, &settings);
        let mut last = (0, 0);
        let progress = |done, total| last = (done, total);
        let mut engine = pollster::block_on(Engine::open(gpu, plan, &source, progress)).unwrap();
        assert!(last.0 == last.1 && last.1 > 0, "{last:?}");
        engine.write_adapter(&tensors);
        let ids: Vec<u32> = (0..20).map(|i| (i * 31 + 7) % config.vocab_size as u32).collect();
        pollster::block_on(engine.logits(&whole_sequence(&ids))).unwrap()
    }

    fn copies(&self, cache: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path(cache)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn shard(&self) -> PathBuf {
        self.path("model/model-00001-of-00002.safetensors")
    }
}

/// Changes a file and leaves its length and time of change as they were.
fn change_unseen(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    edit(path, change);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

/// The last tensor of the file in other values.
fn negate_tail(bytes: &mut [u8]) {
    let tail = bytes.len() - 4000;
    bytes[tail..].iter_mut().skip(3).step_by(4).for_each(|byte| *byte ^= 0x80);
}

#[test]
fn the_copy_has_the_bits_and_stands_for_the_files() {
    for base in [BaseStorage::Quantized(NF4), BaseStorage::QuantizedWhole(NF4)] {
        let model = Model::new();
        let fresh = model.logits(base, None, 0);
        assert_eq!(model.logits(base, Some("cache"), 0), fresh);
        assert_eq!(model.copies("cache").len(), 1);
        assert_eq!(model.logits(base, Some("cache"), 0), fresh);
        // Not read again: what lies in the file now would give other logits.
        change_unseen(&model.shard(), |bytes| negate_tail(bytes));
        assert_ne!(model.logits(base, None, 0), fresh);
        assert_eq!(model.logits(base, Some("cache"), 0), fresh);
    }
}

#[test]
fn a_stale_copy_is_passed_over_and_replaced() {
    let (model, base) = (Model::new(), BaseStorage::Quantized(NF4));
    let before = model.logits(base, Some("cache"), 0);
    edit(&model.shard(), |bytes| negate_tail(bytes));
    let after = model.logits(base, None, 0);
    assert_ne!(before, after);
    for _ in 0..2 {
        assert_eq!(model.logits(base, Some("cache"), 0), after);
    }
    assert_eq!(model.copies("cache").len(), 1);
    // Another storage of the same model has a copy of its own.
    let fp4 = BaseStorage::Quantized(Code4::Fp4.storage(false));
    assert_eq!(model.logits(fp4, Some("cache"), 0), model.logits(fp4, None, 0));
    assert_eq!(model.copies("cache").len(), 2);
}

#[test]
fn a_damaged_copy_is_passed_over_and_replaced() {
    let (model, base) = (Model::new(), BaseStorage::Quantized(NF4));
    let fresh = model.logits(base, Some("cache"), 0);
    let [copy] = model.copies("cache").try_into().unwrap();
    let whole = std::fs::read(&copy).unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 7] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.push(0),
        |bytes| bytes[3] ^= 1,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        },
        |bytes| bytes.fill(0xff),
    ];
    for damage in damages {
        edit(&copy, damage);
        assert_ne!(std::fs::read(&copy).unwrap(), whole);
        assert_eq!(model.logits(base, Some("cache"), 0), fresh);
        assert!(std::fs::read(&copy).unwrap() == whole, "the copy is whole again");
    }
    assert_eq!(model.copies("cache"), [copy]);
}

/// Makes a file as if it had been written or used so many hours ago.
fn grow_old(path: &Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(3600 * hours);
    std::fs::File::options().append(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn copies_unused_the_longest_make_room_for_new_ones() {
    let model = Model::new();
    let fp4 = Code4::Fp4.storage(true);
    let bases = [BaseStorage::Quantized(NF4), BaseStorage::Quantized(fp4), BaseStorage::QuantizedWhole(NF4)];
    let listed = || quantized_cache::copies(&model.path("cache"));
    // Each copy's file and bytes, made in a cache without a bound.
    let mut files = Vec::new();
    for base in bases {
        model.logits(base, Some("cache"), 0);
        let new = listed().into_iter().find(|copy| files.iter().all(|(path, _)| *path != copy.path)).unwrap();
        let source = new.source.clone().unwrap();
        assert_eq!(source.model, model.path("model").canonicalize().unwrap());
        assert_eq!(source.format.code == Code4::Fp4, base == bases[1]);
        assert_eq!((source.format.double, source.embedding), (true, base == bases[2]));
        files.push((new.path, new.bytes));
    }
    let [first, second, whole] = <[(PathBuf, u64); 3]>::try_from(files).unwrap();
    std::fs::remove_file(&whole.0).unwrap();
    grow_old(&first.0, 3);
    grow_old(&second.0, 2);
    // What else lies there: another cache's file, a copy being written, one that a killed process has left, and something foreign.
    let other = |name: &str| model.path(&format!("cache/{name}"));
    let [measured, written, left] =
        ["kernels-01234567.json", "0123456789abcdef.7.part", "0123456789abcdef.8.part"].map(other);
    let foreign = other("notes.4bit");
    for path in [&measured, &written, &left, &foreign] {
        std::fs::write(path, vec![0; 1 << 20]).unwrap();
    }
    for path in [&measured, &left, &foreign] {
        grow_old(path, 100);
    }
    assert_eq!(quantized_cache::abandoned(&model.path("cache")), [(left.clone(), 1 << 20)]);
    // A use makes the oldest the newest; the bound is not reached.
    let bound = first.1 + whole.1;
    assert!(first.1 + second.1 <= bound);
    let fresh = model.logits(bases[0], None, 0);
    assert_eq!(model.logits_within(bases[0], Some("cache"), 0, bound), fresh);
    assert_eq!(listed().iter().map(|copy| &copy.path).collect::<Vec<_>>(), [&second.0, &first.0]);
    assert!(!left.exists(), "what was left behind goes");
    // The new copy takes the place of the one that was not used.
    model.logits_within(bases[2], Some("cache"), 0, bound);
    let mut now: Vec<_> = listed().into_iter().map(|copy| copy.path).collect();
    now.sort();
    let mut expected = [first.0.clone(), whole.0.clone()];
    expected.sort();
    assert_eq!(now, expected);
    // Under a smaller bound the one in use stays, though it alone is larger, and it still stands for the files.
    change_unseen(&model.shard(), |bytes| negate_tail(bytes));
    assert_eq!(model.logits_within(bases[0], Some("cache"), 0, first.1 - 1), fresh);
    assert_eq!(listed().into_iter().map(|copy| copy.path).collect::<Vec<_>>(), [first.0]);
    // None is written that alone is larger.
    model.logits_within(bases[1], Some("cache"), 0, second.1 - 1);
    assert_eq!(listed().len(), 1);
    for path in [measured, written, foreign] {
        assert_eq!(std::fs::metadata(path).unwrap().len(), 1 << 20);
    }
}

#[test]
fn small_models_and_places_that_cannot_be_written_have_no_copy() {
    let (model, base) = (Model::new(), BaseStorage::Quantized(NF4));
    let fresh = model.logits(base, Some("cache"), 1 << 30);
    assert!(model.copies("cache").is_empty());
    std::fs::write(model.path("taken"), "a file").unwrap();
    assert_eq!(model.logits(base, Some("taken"), 0), fresh);
    assert_eq!(std::fs::read(model.path("taken")).unwrap(), b"a file");
    // Weights that are not quantized are not copied.
    model.logits(BaseStorage::AsStored, Some("cache"), 0);
    assert!(model.copies("cache").is_empty());
}
