module qmail

go 1.26.0
