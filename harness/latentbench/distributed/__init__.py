"""Work that several processes share: who they are, how they are started, watched and talk to each other."""
