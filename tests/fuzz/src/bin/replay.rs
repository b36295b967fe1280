//! Gives one input to a target many times, without a fuzzer: threads do not meet in the same way each time.
//! `replay <target> <file>`

use std::process::ExitCode;

/// How often.
const TIMES: usize = 100;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, path] = &arguments[..] else {
        return Err("usage: replay <target> <file>".to_owned());
    };
    let target = fuzz::target(name)?;
    let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    println!("{}", target.describe(&bytes));
    for _ in 0..TIMES {
        target.run(&bytes);
    }
    Ok(())
}
