"""The command line of digitserve: one program for serving, exporting, predicting and scoring."""
