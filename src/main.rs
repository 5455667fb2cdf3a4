//! The terminal program: parses arguments, prints errors, nothing else.

#![expect(unreachable_pub, reason = "nobody uses a program from outside")]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Without it, Mesa's software driver prints lines that read as errors of ours; nothing is put there.
    if cfg!(unix) && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        #[expect(unsafe_code, reason = "the environment may change only while no other thread reads it")]
        unsafe {
            std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir());
        }
    }
    // A file beyond the limit of `ulimit -f` is then an error of its write instead of the end of the program.
    #[cfg(unix)]
    // SAFETY: ignoring a signal runs no code of ours.
    #[expect(unsafe_code, reason = "the standard library cannot ignore a signal")]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !loraine::panics::is_caught() {
            hook(panic);
        }
    }));
    let Err(error) = cli::run() else { return ExitCode::SUCCESS };
    if let Some(ended) = error.downcast_ref::<cli::Ended>() {
        return ExitCode::from(ended.status());
    }
    // In one piece, since other processes of a run write to the same terminal.
    let line = format!("error: {}{}\n", cli::whose(), cli::shown(&error));
    eprint!("{line}");
    cli::leave();
    ExitCode::FAILURE
}
