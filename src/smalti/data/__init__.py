"""Where examples come from: folders, lists and zip files of pictures (`sources`), the stream that training reads
(`loading`), shards of codes that stage 2 reads instead of pictures (`codes`), and the embedded pictures (`scenes`)."""
