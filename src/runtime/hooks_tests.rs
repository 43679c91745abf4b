use super::*;
use std::path::Path;

fn shell(script: &str) -> HostHook {
    HostHook {
        args: vec!["sh".into(), "-c".into(), script.into()],
        ..program("/bin/sh")
    }
}

fn program(path: &str) -> HostHook {
    HostHook {
        path: path.into(),
        args: Vec::new(),
        env: Some(Vec::new()),
        timeout_s: None,
    }
}

fn failure(hook: HostHook) -> String {
    chain(&run(Point::Prestart, &[hook], b"{}").unwrap_err())
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn state_arguments_and_environment_are_as_given() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let mut hook = shell("cat > $OUT; echo \"$0 $1 $A\" >> $OUT; /usr/bin/env >> $OUT");
    hook.args.extend(["name".into(), "arg".into()]);
    hook.env = Some(vec![
        format!("OUT={}", to.display()),
        "A=b=c".into(),
        "PWD=/".into(),
    ]);
    run(Point::CreateRuntime, &[hook], b"{\"a\":1}\n").unwrap();
    let text = text(&to);
    let mut lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.remove(0), "{\"a\":1}");
    assert_eq!(lines.remove(0), "name arg b=c");
    lines.retain(|line| !line.starts_with("_=") && !line.starts_with("PWD="));
    lines.sort_unstable();
    assert_eq!(lines, ["A=b=c", &format!("OUT={}", to.display())]);
}

#[test]
fn the_first_that_fails_ends_the_series() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let touch = |name: &str| shell(&format!("> {}", file(name).display()));
    let hooks = [
        touch("a"),
        shell("echo 1 >&2; echo no >&2; exit 3"),
        touch("b"),
    ];
    let error = run(Point::Prestart, &hooks, b"{}").unwrap_err();
    assert_eq!(
        chain(&error),
        "error running prestart hook #1 \"/bin/sh\" (stderr: 1 no): exit status 3"
    );
    assert!(file("a").exists() && !file("b").exists());
    run_each(Point::Poststop, &hooks, b"{}");
    assert!(file("b").exists());
}

#[test]
fn ends_are_told() {
    assert_eq!(
        failure(shell("kill -9 $$")),
        "error running prestart hook #0 \"/bin/sh\": ended by signal 9"
    );
    let none = program("/nonexistent");
    assert_eq!(
        failure(none),
        "error running prestart hook #0 \"/nonexistent\": cannot be executed: \
         No such file or directory (os error 2)"
    );
    let relative = program("true");
    assert!(failure(relative).contains("must be absolute"));
}

#[test]
fn a_timeout_kills_the_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let lock = folder.path().join("lock");
    // Both hold the lock, and sleep.
    let script = format!(
        "exec 9>{}; /usr/bin/flock 9; /bin/sleep 3600 & /bin/sleep 3600",
        lock.display()
    );
    let mut hook = shell(&script);
    hook.timeout_s = Some(1);
    assert_eq!(
        failure(hook),
        "error running prestart hook #0 \"/bin/sh\": ran past its timeout of 1 s"
    );
    let lock = std::fs::File::open(lock).unwrap();
    // Waits for ever if one of them is alive.
    rustix::fs::flock(lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
}

#[test]
fn more_state_than_a_pipe_holds_read_or_not() {
    let state = vec![b'x'; 1 << 20];
    let count = shell("[ $(wc -c) = 1048576 ]");
    let mut path = count.clone();
    path.env = Some(vec!["PATH=/bin:/usr/bin".into()]);
    run(Point::Prestart, &[path], &state).unwrap();
    run(Point::Prestart, &[shell("exit 0")], &state).unwrap();
}

#[test]
fn only_the_last_of_much_stderr_is_told() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo line-$i >&2; i=$((i+1)); done; exit 1";
    let line = failure(shell(script));
    assert!(
        line.contains("line-2999)") && !line.contains("line-1 "),
        "{line}"
    );
    assert!(line.len() < TAIL_MAX_BYTES + 200);
}

#[test]
fn a_process_left_behind_is_not_waited_for() {
    let mut hook = shell("/bin/sleep 30 & echo $! > $OUT; exit 0");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("pid");
    hook.env = Some(vec![format!("OUT={}", to.display())]);
    let started = Instant::now();
    run(Point::Poststart, &[hook], b"{}").unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    let left = Pid::from_raw(text(&to).trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(left, Signal::KILL).unwrap();
}

#[test]
fn signals_that_the_caller_blocks_are_not_blocked_in_hooks() {
    let _signals = crate::signals::Signals::block().unwrap();
    assert_eq!(
        failure(shell("kill -TERM $$; exit 0")),
        "error running prestart hook #0 \"/bin/sh\": ended by signal 15"
    );
}
