//! The directory that `--model` names, fetched from the hub if need be.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use loraine::hub::HubModel;
use loraine::hub::fetch::{Extent, HubSettings, fetch};

/// The directory of `--model`: what it says, or where a model of the hub lies in the cache, fetched if need be.
pub fn model_directory(model: &Path, extent: Extent) -> anyhow::Result<PathBuf> {
    let hub_model = model.to_str().and_then(HubModel::parse);
    // What begins with a directory of this place is a path, though nothing may lie there.
    let is_path = model.exists() || model.parent().is_some_and(|owner| owner.is_dir() && owner != Path::new(""));
    let Some(name) = hub_model.filter(|_| !is_path) else { return Ok(model.to_owned()) };
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})")?
            .progress_chars("=> "),
    );
    let dir = fetch(&name, &HubSettings::from_env(), extent, |file, done, total| {
        bar.set_message(file.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(dir?)
}
