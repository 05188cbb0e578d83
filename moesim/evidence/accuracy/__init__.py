"""Published serving results as a test of fidelity: any results table, predicted row by row.

```
 table   names, lengths, engines        workloads        course          judging
 rows -> what a row was measured on -> what was asked -> simulated -> errors, factors, causes
```

A row that cannot be read is an error; one that cannot be simulated is counted under its reason.
"""
