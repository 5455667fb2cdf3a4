//! Ends the program when a chat template takes too much time or memory. The limits on instructions and printed text do not cover
//! everything: a text that is doubled forty times takes only forty instructions.

use std::time::{Duration, Instant};

use loraine::data::template::rendering;

/// Time limit for one conversation, which normally takes milliseconds.
const LONGEST: Duration = Duration::from_secs(20);
const MOST_MEMORY: u64 = 512 << 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Starts to watch every rendering.
pub fn watch_templates() {
    std::thread::spawn(|| {
        let mut watched = None;
        loop {
            std::thread::sleep(PAUSE);
            let Some(number) = rendering() else { continue };
            let (begun, memory) = match watched {
                Some((same, begun, memory)) if same == number => (begun, memory),
                _ => (Instant::now(), resident_bytes()),
            };
            watched = Some((number, begun, memory));
            let excess = if begun.elapsed() > LONGEST {
                format!("runs without end: {} s for one conversation", LONGEST.as_secs())
            } else if resident_bytes() > memory.saturating_add(MOST_MEMORY) {
                format!("takes more than {} MiB of memory for one conversation", MOST_MEMORY >> 20)
            } else {
                continue;
            };
            eprintln!("error: the chat template {excess}; choose another with --chat-template");
            std::process::exit(1);
        }
    });
}

/// Memory of this process in bytes; 0 where the system does not report it.
fn resident_bytes() -> u64 {
    const SMALLEST_PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * SMALLEST_PAGE)
}
