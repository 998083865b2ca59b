use super::*;
use crate::sums::{self, SUMS};
use std::collections::BTreeMap;

const KIND: FolderKind = FolderKind {
    name: "test folder",
    files: &["config.json", "weights"],
    recognize: |folder| fs::read(folder.join("config.json")).is_ok_and(|text| text == b"ours, of before"),
};

/// Names and contents of everything in a folder, links as `-> TARGET`.
fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            if metadata.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else if metadata.is_dir() {
                open.push(path);
            } else {
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn names(folder: &Path) -> Vec<String> {
    tree(folder).into_keys().collect()
}

fn write_folder(target: &Path, text: &str, force: bool) -> Result<(), WriteError> {
    let mut folder = NewFolder::create(target, &KIND, force)?;
    folder.write("config.json", text.as_bytes())?;
    folder.place()
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("a/model");
    write_folder(&target, "one", false).unwrap();
    write_folder(&target, "two", false).unwrap();
    assert_eq!(sums::verify(&target).unwrap().unwrap().kind, "test folder");
    let before = tree(dir.path());
    let mut failed = NewFolder::create(&target, &KIND, false).unwrap();
    failed.write("config.json", b"three").unwrap();
    // A reader sees the old folder until the new one is placed, and a second writer is told.
    assert_eq!(fs::read_to_string(target.join("config.json")).unwrap(), "two");
    assert!(matches!(write_folder(&target, "four", false), Err(WriteError::Held { .. })));
    drop(failed);
    assert_eq!(tree(dir.path()), before);
    assert_eq!(names(dir.path()), ["a/model/SHA256SUMS", "a/model/config.json"]);
}

#[test]
fn only_what_was_written_here_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("photos")).unwrap();
    fs::write(at("photos/cat.png"), "cat").unwrap();
    fs::create_dir_all(at("model")).unwrap();
    fs::write(at("model/config.json"), "{}").unwrap();
    fs::write(at("model/weights"), "dear").unwrap();
    fs::create_dir_all(at("other")).unwrap();
    fs::write(at("other").join(SUMS), "# squat 0.1.0: other folder\n").unwrap();
    fs::write(at("file"), "text").unwrap();
    let before = tree(dir.path());
    for (name, word) in
        [("photos", "cat.png"), ("model", "config.json"), ("other", "a other folder"), ("file", "got a file")]
    {
        let error = write_folder(&at(name), "x", false).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(name), "{error}");
    }
    assert_eq!(tree(dir.path()), before);
    // By force the names that are written are replaced, and nothing else.
    write_folder(&at("photos"), "x", true).unwrap();
    assert_eq!(names(&at("photos")), ["SHA256SUMS", "cat.png", "config.json"]);
    write_folder(&at("model"), "x", true).unwrap();
    assert_eq!(names(&at("model")), ["SHA256SUMS", "config.json"]);
    // A folder of folders is never a thing to replace.
    fs::create_dir_all(at("home/work")).unwrap();
    assert!(write_folder(&at("home"), "x", true).unwrap_err().to_string().contains("\"work\""));
    // Folders from before there were lists of files, and empty ones.
    fs::create_dir(at("before")).unwrap();
    fs::write(at("before/config.json"), "ours, of before").unwrap();
    fs::create_dir(at("empty")).unwrap();
    for name in ["before", "empty"] {
        write_folder(&at(name), "x", false).unwrap();
        assert_eq!(names(&at(name)), ["SHA256SUMS", "config.json"]);
    }
}

#[test]
fn files_of_others_stay_in_a_folder_that_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    write_folder(&target, "one", false).unwrap();
    fs::write(target.join("README.md"), "mine").unwrap();
    fs::create_dir_all(target.join("notes/deep")).unwrap();
    fs::write(target.join("notes/deep/a.txt"), "note").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", target.join("link")).unwrap();
    write_folder(&target, "two", false).unwrap();
    let found = tree(&target);
    assert_eq!((found["README.md"].as_str(), found["notes/deep/a.txt"].as_str()), ("mine", "note"));
    assert_eq!(found["config.json"], "two");
    #[cfg(unix)]
    assert_eq!(found["link"], "-> nowhere");
    // A file of theirs under a name that is to be written now.
    fs::write(target.join("weights"), "mine too").unwrap();
    let mut folder = NewFolder::create(&target, &KIND, false).unwrap();
    let error = folder.write("weights", b"x").unwrap_err().to_string();
    assert!(error.contains("weights") && error.contains("no part"), "{error}");
    drop(folder);
    assert_eq!(tree(&target)["weights"], "mine too");
}

#[cfg(unix)]
#[test]
fn links_are_followed() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("disk")).unwrap();
    symlink("disk/model", at("link")).unwrap();
    for text in ["one", "two"] {
        write_folder(&at("link"), text, false).unwrap();
        assert_eq!(fs::read_to_string(at("disk/model/config.json")).unwrap(), text);
    }
    symlink("disk/report", at("report")).unwrap();
    NewFile::write(&at("report"), Replace::Any, b"text").unwrap();
    assert_eq!(fs::read_to_string(at("disk/report")).unwrap(), "text");
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    symlink("loop", at("loop")).unwrap();
    assert!(write_folder(&at("loop"), "x", false).unwrap_err().to_string().contains("itself"));
}

#[test]
fn a_file_replaces_its_own_kind_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prefix");
    let write = |text: &[u8]| NewFile::write(&path, Replace::StartingWith(b"MAGIC"), text);
    write(b"MAGIC one").unwrap();
    write(b"MAGIC two").unwrap();
    for other in ["MAGI", "letter to my mother"] {
        fs::write(&path, other).unwrap();
        assert!(matches!(write(b"MAGIC three"), Err(WriteError::Foreign { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), other);
    }
    fs::write(&path, "").unwrap();
    write(b"MAGIC").unwrap();
    let error = NewFile::write(dir.path(), Replace::Any, b"x").unwrap_err().to_string();
    assert!(error.contains("regular file"), "{error}");
    #[cfg(unix)]
    assert!(
        NewFile::write(Path::new("/dev/null"), Replace::Any, b"x")
            .unwrap_err()
            .to_string()
            .contains("regular")
    );
    assert_eq!(names(dir.path()), ["prefix"]);
}

#[test]
fn checksums_are_of_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = NewFile::create(&dir.path().join("x"), Replace::Any).unwrap();
    file.put(b"ab").unwrap();
    file.put(b"c").unwrap();
    let written = file.finish().unwrap();
    assert_eq!((written.bytes(), written.sha256()), (3, sums::sha256(b"abc").as_str()));
    written.place().unwrap();
    assert_eq!(tree(dir.path())["x"], "abc");
}

#[test]
fn what_killed_writers_left_is_removed_or_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let left = |name: &str| {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("config.json"), name).unwrap();
    };
    // Killed before the rename, and after the exchange: the output is there, the rest goes.
    write_folder(&at("model"), "one", false).unwrap();
    left(".model.new-1-0");
    left(".model.old-1-1");
    fs::write(at(".model.lock"), "process 1").unwrap();
    assert!(!recover(&at("model")).unwrap());
    assert_eq!(names(dir.path()), ["model/SHA256SUMS", "model/config.json"]);
    // Between two renames: the old state comes back.
    fs::rename(at("model"), at(".model.old-7-0")).unwrap();
    left(".model.new-7-1");
    assert_eq!(sweep(dir.path()).unwrap(), [at("model")]);
    assert_eq!(tree(&at("model"))["config.json"], "one");
    assert_eq!(names(dir.path()), ["model/SHA256SUMS", "model/config.json"]);
    // The next writer sweeps too; names that only look alike are somebody else's.
    left(".model.new-8-1");
    left(".model.new-mine");
    write_folder(&at("model"), "two", false).unwrap();
    assert_eq!(names(dir.path()), [".model.new-mine/config.json", "model/SHA256SUMS", "model/config.json"]);
    // Not while its writer lives.
    let folder = NewFolder::create(&at("model"), &KIND, false).unwrap();
    assert!(sweep(dir.path()).unwrap().is_empty());
    assert!(folder.path().is_dir());
    assert!(matches!(recover(&at("model")), Err(WriteError::Held { .. })));
}

#[test]
fn an_output_folder_has_one_writer_and_one_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let claim = |kind: &str, force| OutputFolder::claim(&path, kind, &["recipe", "data"], |_| false, force);
    let run = claim("run", false).unwrap();
    run.write("recipe", b"x").unwrap();
    assert!(matches!(claim("run", false), Err(WriteError::Held { .. })));
    drop(run);
    claim("run", false).unwrap().write("recipe", b"y").unwrap();
    let error = claim("corpus", false).unwrap_err().to_string();
    assert!(error.contains("a run"), "{error}");
    assert_eq!(names(&path), [".squat", "recipe"]);
    // A folder of somebody else's: only where no name is taken.
    fs::remove_file(path.join(MARKER)).unwrap();
    let error = claim("run", false).unwrap_err().to_string();
    assert!(error.contains("\"recipe\"") && error.contains("--force"), "{error}");
    fs::rename(path.join("recipe"), path.join("letter")).unwrap();
    claim("run", false).unwrap().abandon();
    assert_eq!(names(&path), [".squat", "letter"], "a folder that was there stays");
    fs::write(dir.path().join("file"), "").unwrap();
    let file = OutputFolder::claim(&dir.path().join("file"), "run", &[], |_| true, true).unwrap_err();
    assert!(file.to_string().contains("got a file"));
    let new = OutputFolder::claim(&dir.path().join("new"), "run", &[], |_| true, false).unwrap();
    new.write("recipe", b"x").unwrap();
    new.abandon();
    assert!(!dir.path().join("new").exists());
}

#[cfg(unix)]
#[test]
fn the_umask_decides_about_modes() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // What the standard library makes of the umask of this process.
    fs::write(dir.path().join("plain"), "").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let (file, folder) = (mode(&dir.path().join("plain")), mode(&dir.path().join("folder")));
    let target = dir.path().join("model");
    write_folder(&target, "x", false).unwrap();
    NewFile::write(&dir.path().join("report"), Replace::Any, b"").unwrap();
    let found = [
        mode(&target),
        mode(&target.join("config.json")),
        mode(&target.join(SUMS)),
        mode(&dir.path().join("report")),
    ];
    assert_eq!(found, [folder, file, file, file]);
    // A folder that is replaced keeps the mode that its owner gave it.
    fs::set_permissions(&target, fs::Permissions::from_mode(0o750)).unwrap();
    write_folder(&target, "y", false).unwrap();
    assert_eq!(mode(&target), 0o750);
}
