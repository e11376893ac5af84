//! Print the architecture that this was compiled for, by its name in the OCI image specification.

fn main() {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    println!("Compiled for [{architecture}].");
}
