"""The second paper (Hossain et al., TMLR 2026): attention of vision-language models, its layers ranked by InfoScore."""
