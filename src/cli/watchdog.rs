//! Ends the program when a chat template or a tokenizer takes too much time or memory. The limits on a template's instructions and
//! printed text do not cover everything: a text that is doubled forty times takes only forty instructions. Tokenizers have no limits.

use std::time::{Duration, Instant};

use loraine::data::watch::{Current, Work, current};

/// Time limit for one conversation, or for a short text, which normally take milliseconds.
const LONGEST: Duration = Duration::from_secs(20);
const MOST_MEMORY: u64 = 512 << 20;
/// Slow tokenizers take a microsecond for a byte of text, and all some fifty bytes of memory.
const NANOSECONDS_PER_BYTE: u64 = 20_000;
const MEMORY_PER_BYTE: u64 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Starts to watch.
pub fn watch() {
    std::thread::spawn(|| {
        let mut watched = None;
        loop {
            std::thread::sleep(PAUSE);
            let Some(Current { number, work, bytes }) = current() else { continue };
            let (begun, memory) = match watched {
                Some((same, begun, memory)) if same == number => (begun, memory),
                _ => (Instant::now(), resident_bytes()),
            };
            watched = Some((number, begun, memory));
            let longest = LONGEST.saturating_add(Duration::from_nanos(bytes.saturating_mul(NANOSECONDS_PER_BYTE)));
            let most = MOST_MEMORY.saturating_add(bytes.saturating_mul(MEMORY_PER_BYTE));
            let excess = if begun.elapsed() > longest {
                format!("runs without end: {} s", longest.as_secs())
            } else if resident_bytes() > memory.saturating_add(most) {
                format!("takes more than {} MiB of memory", most >> 20)
            } else {
                continue;
            };
            match work {
                Work::Template => {
                    eprintln!(
                        "error: the chat template {excess} for one conversation; choose another with --chat-template"
                    );
                }
                Work::Tokenizer => eprintln!("error: tokenizer.json of the model {excess} for {bytes} bytes of text"),
            }
            std::process::exit(1);
        }
    });
}

/// Memory of this process in bytes; without `/proc` the most that it ever had, and 0 where the system does not report it.
fn resident_bytes() -> u64 {
    const SMALLEST_PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map_or_else(peak_bytes, |pages| pages * SMALLEST_PAGE)
}

#[cfg(unix)]
fn peak_bytes() -> u64 {
    // SAFETY: the call fills the structure, which any bytes make valid.
    #[expect(unsafe_code, reason = "the standard library does not tell a process its memory")]
    let peak = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage.ru_maxrss
    };
    // Apple's systems count in bytes, the others in kilobytes.
    u64::try_from(peak).unwrap_or(0) * if cfg!(target_vendor = "apple") { 1 } else { 1024 }
}

#[cfg(not(unix))]
fn peak_bytes() -> u64 {
    0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_process_is_known() {
        let (resident, peak) = (resident_bytes(), peak_bytes());
        assert!(resident > 1 << 20 && peak > 1 << 20 && resident < 2 * peak, "{resident} {peak}");
    }
}
