//! `run.toml`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loraine::train::settings::RunSettings;

fuzz_target!(|text: &str| {
    let Ok(table) = toml::from_str(text) else { return };
    let Ok(settings) = RunSettings::from_table(table) else { return };
    if settings.check().is_ok() {
        let written = toml::to_string(&settings).expect("run.toml holds every setting that works");
        let again = RunSettings::from_table(toml::from_str(&written).expect("TOML")).expect("its own text");
        assert_eq!(again, settings);
    }
});
