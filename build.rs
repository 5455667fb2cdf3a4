//! Prepares the shaders for `shader!`. A program of the system includes each as it is. For browsers, all texts lie in one compressed file
//! without comments and indentation, since a visitor downloads them, and `shader!` includes a text's name.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::{env, fs, io};

use flate2::Compression;
use flate2::write::GzEncoder;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=shaders");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets no OUT_DIR"))?;
    let is_for_browsers = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "wasm32");
    let mut all = String::new();
    for folder in ["", "lib/"] {
        let to = Path::new(&out).join("shaders").join(folder);
        fs::create_dir_all(&to)?;
        let mut paths: Vec<_> = fs::read_dir(Path::new("shaders").join(folder))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        paths.sort();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let text = fs::read_to_string(&path)?;
            if is_for_browsers {
                let key = format!("{folder}{name}");
                let _ = write!(all, "{key}\0{}\0", without_comments(&text));
                fs::write(to.join(name), key)?;
            } else {
                fs::write(to.join(name), text)?;
            }
        }
    }
    if is_for_browsers {
        let mut packed = GzEncoder::new(fs::File::create(Path::new(&out).join("shaders.gz"))?, Compression::best());
        packed.write_all(all.as_bytes())?;
        packed.finish()?;
    }
    Ok(())
}

/// Lines keep their numbers. WGSL has no texts in quotes, so that two slashes always begin a comment.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().trim()).flat_map(|line| [line, "\n"]).collect()
}
