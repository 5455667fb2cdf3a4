//! Copies the shaders to where `shader!` includes them. For browsers, comments and indentation are left out: they would be a thirtieth of
//! what a visitor's page downloads before it is compressed. Lines keep their numbers.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=shaders");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets no OUT_DIR"))?;
    let is_for_browsers = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "wasm32");
    for folder in ["", "lib"] {
        let from = Path::new("shaders").join(folder);
        let to = Path::new(&out).join("shaders").join(folder);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
            let text = fs::read_to_string(&path)?;
            fs::write(to.join(name), if is_for_browsers { without_comments(&text) } else { text })?;
        }
    }
    Ok(())
}

/// WGSL has no texts in quotes, so that two slashes always begin a comment.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().trim()).flat_map(|line| [line, "\n"]).collect()
}
