//! Resolves `--model` to a directory and downloads models of the hub.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use loraine::hub::HubModel;
use loraine::hub::fetch::{Extent, HubSettings, fetch};

/// Returns the directory of `--model`. A model of the hub is downloaded into the cache first.
pub fn model_directory(model: &Path, extent: Extent) -> anyhow::Result<PathBuf> {
    let hub_model = model.to_str().and_then(HubModel::parse);
    // A name whose first part is an existing directory is a path, even if the path does not exist.
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
