//! Errors as a page sees them: JavaScript errors with a kind to choose by.

use js_sys::Reflect;
use wasm_bindgen::prelude::*;

use crate::Error;
use crate::gpu::GpuError;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/** What every call here throws or rejects with. */
export interface LoraineError extends Error {
    name: "LoraineError";
    kind: "no-adapter" | "gpu-lost" | "out-of-memory" | "gpu" | "file" | "setting" | "training" | "hub";
    /** The file that is wrong, where it is one. */
    path?: string;
    /** The JSON key or tensor that is wrong, where it is one. */
    field?: string;
}
"#;

fn kind(error: &Error) -> &'static str {
    match error {
        Error::File { .. } | Error::Field { .. } | Error::Line { .. } => "file",
        Error::Hub { .. } => "hub",
        Error::Setting(_) => "setting",
        Error::Training(_) => "training",
        Error::Gpu(GpuError::NoAdapter | GpuError::Open { .. } | GpuError::UnknownAdapter { .. }) => "no-adapter",
        Error::Gpu(GpuError::Lost(_)) => "gpu-lost",
        Error::Gpu(GpuError::OutOfMemory { .. } | GpuError::LimitTooSmall { .. }) => "out-of-memory",
        Error::Gpu(_) => "gpu",
    }
}

pub fn to_js(error: &Error) -> JsValue {
    let thrown = js_sys::Error::new(&error.to_string());
    thrown.set_name("LoraineError");
    let set = |key: &str, value: &str| {
        // A fresh object takes any property.
        let _ = Reflect::set(&thrown, &key.into(), &value.into());
    };
    set("kind", kind(error));
    match error {
        Error::File { path, .. } | Error::Line { path, .. } => set("path", &path.display().to_string()),
        Error::Field { path, field, .. } => {
            set("path", &path.display().to_string());
            set("field", field);
        }
        _ => {}
    }
    thrown.into()
}

/// What a page's own function threw, as text.
pub fn text(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => format!("{thrown:?}"),
    }
}
