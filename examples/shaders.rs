//! Every kernel in every variant as WGSL files, to look at or to give to another compiler (tint, for instance).
//! `cargo run --example shaders -- DIR`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("say where the files are to go: shaders DIR")?);
    std::fs::create_dir_all(&dir)?;
    let kernels = loraine::ops::kernels();
    for (number, kernel) in kernels.iter().enumerate() {
        std::fs::write(dir.join(format!("{number:03}_{}.wgsl", kernel.name)), kernel.wgsl())?;
    }
    println!("{} files in {}", kernels.len(), dir.display());
    Ok(())
}
