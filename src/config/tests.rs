use super::*;
use crate::keys::SecretKey;

const KEY: &str = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE";

const WHOLE: &str = r#"listen = ["0.0.0.0:9771", "[::1]:80"]
key = "key"
[directories.media]
path = "/srv/media/"
accept_unsynced = true
[directories."old films"]
path = "/srv/./old"
[peers.laptop]
key = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"
[peers.laptop.rights]
media = ["read", "write", "replace", "delete"]
"old films" = ["read"]
"#;

fn daemon(text: &str) -> Result<DaemonConfig, ConfigError> {
    DaemonConfig::parse(text, Path::new("/etc/realize/realized.toml"))
}

fn hosts(text: &str) -> Result<HostsFile, ConfigError> {
    HostsFile::parse(text, Path::new("hosts.toml"))
}

/// The error for WHOLE with `from` replaced.
fn error_with(from: &str, to: &str) -> String {
    assert!(WHOLE.contains(from), "{from}");
    daemon(&WHOLE.replace(from, to)).unwrap_err().to_string()
}

/// Checks that the error is for this line and has all these parts.
#[track_caller]
fn assert_error(error: &str, line: usize, parts: &[&str]) {
    let start = format!("\"/etc/realize/realized.toml\" line {line}: ");
    assert!(error.starts_with(&start), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

#[test]
fn whole_file_is_read() {
    let config = daemon(WHOLE).unwrap();
    let addresses: Vec<String> = config.listen.iter().map(SocketAddr::to_string).collect();
    assert_eq!(addresses, ["0.0.0.0:9771", "[::1]:80"]);
    assert_eq!(config.key, Path::new("/etc/realize/key"));
    let media = &config.directories["media"];
    assert_eq!((media.path.to_str(), media.accept_unsynced), (Some("/srv/media"), true));
    let old = &config.directories["old films"];
    assert_eq!((old.path.to_str(), old.accept_unsynced), (Some("/srv/old"), false));

    let laptop: PublicKey = KEY.parse().unwrap();
    assert_eq!(config.peer(&laptop).unwrap().name, "laptop");
    let all = Rights {
        read: true,
        write: true,
        replace: true,
        delete: true,
    };
    assert_eq!(config.rights(&laptop, "media"), all);
    let read = Rights {
        read: true,
        ..Rights::default()
    };
    assert_eq!(config.rights(&laptop, "old films"), read);
    assert_eq!(config.rights(&laptop, "other"), Rights::default());
    let stranger = SecretKey::generate().unwrap().public();
    assert_eq!(config.peer(&stranger), None);
    assert_eq!(config.rights(&stranger, "media"), Rights::default());
}

#[test]
fn defaults_stand_for_what_is_left_out() {
    let config = daemon("key = \"/run/key\"\n").unwrap();
    assert_eq!(config.listen, ["[::]:9771".parse().unwrap()]);
    assert_eq!(config.key, Path::new("/run/key"));
    assert!(config.directories.is_empty() && config.peers.is_empty());
    let one = daemon("key = \"k\"\nlisten = \"127.0.0.1:1\"\n").unwrap();
    assert_eq!(one.listen, ["127.0.0.1:1".parse().unwrap()]);
    let here = DaemonConfig::parse("key = \"k\"\n", Path::new("realized.toml")).unwrap();
    assert_eq!(here.key, Path::new("k"));
}

#[test]
fn each_right_is_its_own() {
    let rights = |list: &str| {
        let from = r#"["read", "write", "replace", "delete"]"#;
        let config = daemon(&WHOLE.replace(from, list)).unwrap();
        let rights = config.rights(&KEY.parse().unwrap(), "media");
        [rights.read, rights.write, rights.replace, rights.delete]
    };
    assert_eq!(rights("[]"), [false; 4]);
    assert_eq!(rights(r#"["read"]"#), [true, false, false, false]);
    assert_eq!(rights(r#"["write"]"#), [false, true, false, false]);
    assert_eq!(rights(r#"["write", "replace"]"#), [false, true, true, false]);
    assert_eq!(rights(r#"["delete"]"#), [false, false, false, true]);
}

#[test]
fn unknown_words_are_refused() {
    assert_error(
        &error_with("accept_unsynced", "acept_unsynced"),
        5,
        &["acept_unsynced", "accept_unsynced"],
    );
    assert_error(&error_with("\"delete\"", "\"remove\""), 11, &["remove", "delete"]);
    assert_error(&error_with("key = \"key\"", "keys = \"key\""), 2, &["keys", "`key`"]);
    assert_error(
        &error_with("[peers.laptop.rights]", "[peers.laptop.right]"),
        10,
        &["right"],
    );
    assert_error(
        &error_with("path = \"/srv/media/\"", "path = \"/srv\"\nro = true"),
        5,
        &["ro"],
    );
    // What is below a section is the section's.
    assert_error(
        &error_with("path = \"/srv/media/\"", "path = \"/srv\"\nlisten = \"127.0.0.1:9771\""),
        5,
        &["`listen`", "above the first [section]"],
    );
    assert_error(
        &daemon("key = \"k\"\n[peers.laptop]\nlog_level = \"warn\"\n")
            .unwrap_err()
            .to_string(),
        3,
        &["`log_level`", "above the first [section]"],
    );
}

#[test]
fn broken_toml_and_wrong_types_are_refused_with_their_line() {
    assert_error(
        &error_with("accept_unsynced = true", "accept_unsynced ="),
        5,
        &["accept_unsynced"],
    );
    assert_error(
        &error_with("accept_unsynced = true", "accept_unsynced = 1"),
        5,
        &["accept_unsynced", "boolean"],
    );
    assert_error(
        &error_with("[directories.\"old films\"]", "[directories.media]"),
        6,
        &["directories.media"],
    );
    assert_error(
        &error_with("listen = [", "listen = [3, "),
        1,
        &["listen", "list of strings"],
    );
    let missing = daemon("listen = \"[::]:1\"\n").unwrap_err().to_string();
    assert!(
        missing.contains("realized.toml") && missing.contains("no key is named") && missing.contains("key = \""),
        "{missing}"
    );
}

#[test]
fn bad_listen_addresses_are_refused() {
    for wrong in ["localhost:1", "0.0.0.0", "9771", "[::]", "0.0.0.0:99999", ""] {
        let error = error_with("0.0.0.0:9771", wrong);
        assert_error(
            &error,
            1,
            &["listen", &format!("\"{wrong}\""), "write \"0.0.0.0:9771\""],
        );
    }
    let empty = daemon("listen = []\nkey = \"k\"").unwrap_err().to_string();
    assert_error(&empty, 1, &["listen: the list is empty", "[::]:9771"]);
    assert_error(
        &error_with("[::1]:80", "0.0.0.0:9771"),
        1,
        &["listen: 0.0.0.0:9771 is named twice"],
    );
}

#[test]
fn bad_directory_names_are_refused() {
    let with_name = |name: &str| error_with("[directories.media]", &format!("[directories.\"{name}\"]"));
    for name in ["a/b", "a:b", ".", ".."] {
        assert_error(
            &with_name(name),
            3,
            &[&format!("directories.\"{name}\""), "choose a name"],
        );
    }
    assert_error(&with_name(""), 3, &["directories.\"\"", "the name is empty"]);
    assert_error(&with_name("a\\u001b[2J"), 3, &["a control character"]);
    assert_error(&with_name(&"x".repeat(256)), 3, &["longer than 255 bytes"]);
    let longest = format!("key = \"k\"\n[directories.{}]\npath = \"/a\"\n", "x".repeat(255));
    daemon(&longest).unwrap();
}

#[test]
fn bad_directory_paths_are_refused() {
    let with_path = |path: &str| error_with("/srv/media/", path);
    for path in ["", "srv", "./srv", "~/srv"] {
        assert_error(&with_path(path), 4, &["directories.\"media\".path", "is not absolute"]);
    }
    assert_error(
        &with_path("/srv/../etc"),
        4,
        &["directories.\"media\".path", "has a \"..\""],
    );
    assert_error(&with_path("/srv\\u0000"), 4, &["directories.\"media\".path", "NUL"]);
    for path in ["/srv/old", "/srv/old/", "//srv/./old/."] {
        assert_error(
            &with_path(path),
            7,
            &["\"/srv/old\" is directories.\"media\" already", "give it one name"],
        );
    }
}

#[test]
fn bad_peers_are_refused() {
    assert_error(
        &error_with(KEY, &KEY[..50]),
        9,
        &["peers.\"laptop\".key", "43 characters", "keygen"],
    );
    assert_error(
        &error_with("ed25519:", ""),
        9,
        &["peers.\"laptop\".key", "begins with \"ed25519:\""],
    );
    let twice = format!("{WHOLE}[peers.other]\nkey = \"{KEY}\"\n");
    let error = daemon(&twice).unwrap_err().to_string();
    assert_error(&error, 14, &["peers.\"other\".key is that of peers.\"laptop\" already"]);
    let nameless = WHOLE.replace("peers.laptop", "peers.\"\"");
    assert_error(
        &daemon(&nameless).unwrap_err().to_string(),
        8,
        &["peers.\"\"", "the name is empty"],
    );
}

#[test]
fn bad_rights_are_refused() {
    let error = error_with("\nmedia = [", "\nmovies = [");
    assert_error(
        &error,
        11,
        &["peers.\"laptop\".rights.\"movies\"", "no [directories.\"movies\"]"],
    );
    let error = error_with("\"write\", ", "");
    assert_error(
        &error,
        11,
        &[
            "peers.\"laptop\".rights.\"media\"",
            "\"replace\" is of no use without \"write\"",
        ],
    );
}

#[test]
fn hosts_are_found_as_they_are_written() {
    let text = format!(
        "[hosts.\"nas\"]\nkey = \"{KEY}\"\n[hosts.box]\nkey = \"{KEY}\"\naddress = \"[fe80::1]:80\"\n\
         [hosts.\"a.example\"]\nkey = \"{KEY}\"\naddress = \"192.168.1.5\"\n"
    );
    let hosts = hosts(&text).unwrap();
    let address = |name| hosts.host(name).unwrap().address.clone().map(|at| (at.host, at.port));
    assert_eq!(hosts.host("nas").unwrap().key.to_string(), KEY);
    assert_eq!(address("nas"), None);
    assert_eq!(address("box"), Some(("fe80::1".into(), 80)));
    assert_eq!(address("a.example"), Some(("192.168.1.5".into(), 9771)));
    assert_eq!(hosts.host("NAS"), None);
    assert_eq!(super::HostsFile::default().host("nas"), None);
}

#[test]
fn bad_hosts_are_refused() {
    let with = |rest: &str| {
        hosts(&format!("[hosts.nas]\nkey = \"{KEY}\"\n{rest}\n"))
            .unwrap_err()
            .to_string()
    };
    for address in [
        "",
        ":80",
        "a:0",
        "a:b",
        "fe80::1",
        "[fe80::1",
        "[fe80::1]80",
        "me@nas",
        "nas/x",
        "a\\nb",
    ] {
        let error = with(&format!("address = \"{address}\""));
        let parts = ["\"hosts.toml\" line 3: hosts.\"nas\".address: ", "write NAME"];
        assert!(parts.iter().all(|part| error.contains(part)), "{address}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(with("adress = \"a\"").contains("adress"));
    let error = hosts("[hosts.nas]\nkey = \"ssh-ed25519 AAAA\"\n")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("\"hosts.toml\" line 2: hosts.\"nas\".key: "),
        "{error}"
    );
    assert!(hosts("[hosts.nas]\n").unwrap_err().to_string().contains("`key`"));
}

#[test]
fn files_are_loaded_up_to_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("realized.toml");
    let write = |bytes: &[u8]| {
        #[expect(clippy::disallowed_methods, reason = "a file to test with")]
        std::fs::write(&path, bytes).unwrap();
    };
    write(WHOLE.as_bytes());
    assert_eq!(DaemonConfig::load(&path).unwrap().key, dir.path().join("key"));
    let comment = "#".repeat(FILE_BYTES_MAX as usize - 8) + "\nkey=\"k\"";
    write(comment.as_bytes());
    DaemonConfig::load(&path).unwrap();
    let comment = format!("#{comment}");
    write(comment.as_bytes());
    let error = DaemonConfig::load(&path).unwrap_err();
    assert!(matches!(&error, ConfigError::Read { why, .. } if why.kind() == io::ErrorKind::FileTooLarge));
    assert!(daemon(&comment).is_err());
    write(b"key = \"\xff\"");
    assert!(matches!(DaemonConfig::load(&path), Err(ConfigError::Read { .. })));
    let missing = HostsFile::load(&dir.path().join("hosts.toml")).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { why, .. } if why.kind() == io::ErrorKind::NotFound));
}
