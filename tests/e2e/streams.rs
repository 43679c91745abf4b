//! stdin, stdout and stderr, byte for byte and as separate streams.

use std::fs;
use std::io::{Read, pipe};
use std::sync::LazyLock;
use std::time::Duration;

use crate::harness::{Bundle, Finished, Runtime};

const MIB: usize = 1 << 20;

/// Bytes of every value, without a period that buffers could have.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::from_fn(|| Some(next()))
        .flatten()
        .take(len)
        .collect()
}

/// What the VMM itself has in memory: all but the guest's, which lies in its
/// template's file. Nothing if the process has just ended.
fn resident_without_guest_kib(pid: u32) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut own_kib = 0;
    let mut is_guest = false;
    let mut guest_seen = false;
    for line in smaps.lines() {
        let is_field = line
            .split(' ')
            .next()
            .is_some_and(|word| word.ends_with(':'));
        if !is_field {
            is_guest = line.ends_with("/memory");
            guest_seen |= is_guest;
        } else if let Some(kib) = line.strip_prefix("Rss:").filter(|_| !is_guest) {
            own_kib += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    guest_seen.then_some(own_kib)
}

/// One container: a line to each stream, then stdin to its end, then a word.
fn relayed() -> &'static [Finished; 2] {
    static RUNS: LazyLock<[Finished; 2]> = LazyLock::new(|| {
        let script = r"printf 'out\0\377\r\n'; printf 'err\0\376\r\n' >&2; cat; printf 'after'";
        Runtime::ALL.map(|runtime| {
            let bundle = Bundle::shell(script);
            runtime.launch(&bundle).stdin(noise(MIB)).finish().success()
        })
    });
    &RUNS
}

#[test]
fn stdout_and_stderr_are_separate_and_unchanged() {
    for run in relayed() {
        assert!(run.stdout.starts_with(b"out\0\xff\r\n"), "{run:?}");
        assert_eq!(run.stderr, b"err\0\xfe\r\n", "{run:?}");
    }
}

#[test]
fn stdin_reaches_the_container_with_its_end() {
    for run in relayed() {
        let echoed = &run.stdout[b"out\0\xff\r\n".len()..];
        let rest = echoed.strip_prefix(&*noise(MIB)).expect("what was sent");
        assert_eq!(rest, b"after");
    }
}

/// 16 MiB, or `VMRUN_TEST_STREAM_MIB` (scripts/test-large sends 1 GiB).
fn stream_len() -> usize {
    let asked = std::env::var("VMRUN_TEST_STREAM_MIB").ok();
    asked.map_or(16, |mib| mib.parse::<usize>().expect("a number")) * MIB
}

#[test]
fn a_large_stream_keeps_its_bytes_and_memory_stays_flat() {
    let len = stream_len();
    let bundle = Bundle::program(&["cat"]);
    let (mut reader, writer) = pipe().unwrap();
    let launch = Runtime::Vmrun.launch(&bundle);
    let launch = launch.limit(1 + (len / (16 * MIB)) as u32);
    let mut running = launch.open_stdin().stdout(writer).start();
    // The first bytes back: the container is there, and all that it needs.
    let block = noise(MIB);
    running.write(&block[..1]);
    let mut first = [0];
    reader.read_exact(&mut first).unwrap();
    let pid = running.monitor().expect("a monitor");
    let resident = move || resident_without_guest_kib(pid);
    let before_kib = resident().expect("memory of the guest");

    let checker = std::thread::spawn({
        let block = block.clone();
        move || {
            let mut peak_kib = 0;
            let mut got = vec![0; MIB];
            for i in 0..len / MIB {
                // Nobody reads for a while: what is sent has to wait outside.
                if i == 2 {
                    std::thread::sleep(Duration::from_secs(5));
                }
                reader.read_exact(&mut got).unwrap();
                assert!(got == block, "MiB {i} differs");
                peak_kib = peak_kib.max(resident().unwrap_or(0));
            }
            assert_eq!(reader.read(&mut got).unwrap(), 0, "more than was sent");
            peak_kib
        }
    });
    for _ in 0..len / MIB {
        running.write(&block);
    }
    running.close_stdin();
    let peak_kib = checker.join().unwrap();
    running.finish().success();
    println!("VMM without guest RAM: {before_kib} KiB at first, {peak_kib} KiB at most");
    assert!(peak_kib < before_kib + 1024);
    // Program and libraries, and what the interpreter of ring 0 has decoded.
    assert!(peak_kib < 16 * 1024, "{peak_kib} KiB");
}

#[test]
fn a_reader_that_went_away_ends_the_writer() {
    // Of both: a shell says it as 128 + SIGPIPE of its child.
    let script = "yes; echo code $? >&2";
    for runtime in Runtime::ALL {
        let bundle = Bundle::shell(script);
        let (mut reader, writer) = pipe().unwrap();
        let running = runtime.launch(&bundle).stdout(writer).start();
        let mut some = [0; 2];
        reader.read_exact(&mut some).unwrap();
        drop(reader);
        let run = running.finish();
        assert!(run.err().contains("code 141"), "{runtime:?}: {run:?}");
    }
}

#[test]
fn closed_streams_are_like_dev_null() {
    let script = "read -r line && exit 4; echo out || exit 5; echo err >&2 || exit 6; exit 3";
    let bundle = Bundle::shell(script);
    let launch = Runtime::Vmrun.launch(&bundle);
    let run = launch.by_shell("exec \"$@\" <&- >&- 2>&-").finish();
    assert_eq!(run.code(), 3, "{run:?}");
}
